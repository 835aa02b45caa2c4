#!/usr/bin/env python3
"""Loads kvferry-proxy for some seconds with short requests, streams and clients that leave, all at once.

Fails unless every request that was waited for got its whole answer, the proxy's own account says the same, and nothing
is left over.

    proxy/bench/under_load.py --bin build/release/bin --seconds 20
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from run import descriptors, free_ports, leftovers, running

LOADS = {
    "short": "--clients 32",
    "stream": "--clients 64 --stream",
    "leaving": "--clients 16 --fresh --leave",
}
# Of each kind: fewer would be no load, on whatever machine.
FEWEST_REQUESTS = 300
MOST_KIB = 128 << 10


def load(options: argparse.Namespace, port: int) -> dict[str, dict[str, float]]:
    """What each load has seen."""
    common = f"--port {port} --requests {1 << 30} --seconds {options.seconds}"
    loads = {
        name: subprocess.Popen(
            [f"{options.bin}/kvferry-proxy-load", *shlex.split(f"{common} {words}")], stdout=subprocess.PIPE
        )
        for name, words in LOADS.items()
    }
    try:
        return {name: json.loads(one.communicate(timeout=options.seconds + 120)[0]) for name, one in loads.items()}
    finally:
        for one in loads.values():
            one.kill()
            one.wait()


def peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def judge(seen: dict[str, dict[str, float]], records: list[dict[str, str]]) -> list[str]:
    """What is wrong."""
    wrong = []
    for name, one in seen.items():
        if one["failed"]:
            wrong.append(f"{name}: {one['failed']} of {one['requests']} requests failed, first: {one['first_failure']}")
        if one["requests"] < FEWEST_REQUESTS:
            wrong.append(f"{name}: no more than {one['requests']} requests")
    asked = sum(int(one["requests"]) for one in seen.values())
    left = sum(int(one["left"]) for one in seen.values())
    if left == 0:
        wrong.append("no client left")
    whole = sum(1 for record in records if record["status"] == "200" and record["cause"] == "ok")
    gone = sum(1 for record in records if record["cause"] == "client_gone")
    if not asked - left <= whole <= asked or len(records) > asked:
        wrong.append(f"{asked} requests, {left} of them left, and the access log has {whole} whole of {len(records)}")
    if whole + gone != len(records):
        wrong.append(f"of {len(records)} requests {whole} are whole and {gone} left: the others ended in another way")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    port, prefill, decode, bootstrap = free_ports(4)
    mock = f"{options.bin}/kvferry-proxy-mock --prefill-port {prefill} --decode-port {decode}"
    mock += f" --bootstrap-port {bootstrap} --events 20 --pause-ms 5"
    with tempfile.NamedTemporaryFile() as log, running(shlex.split(mock), decode):
        proxy = f"{options.bin}/kvferry-proxy --port {port} --admin-port -1 --access-log {log.name} --log-level error"
        proxy += f" --prefill http://127.0.0.1:{prefill} {bootstrap} --decode http://127.0.0.1:{decode}"
        with running(shlex.split(proxy), port) as pid:
            before = descriptors(pid)
            seen = load(options, port)
            left = leftovers(pid, before, port)
            memory = peak_kib(pid)
        lines = Path(log.name).read_text().splitlines()
        wrong = judge(seen, [dict(field.split("=", 1) for field in line.split()[1:]) for line in lines])
    for name, one in seen.items():
        print(
            f"{name}: {one['requests']} requests, {one['left']} left, {one['failed']} failed, "
            f"total p50 {one['total_p50_us']} us, p99 {one['total_p99_us']} us"
        )
    print(f"left behind: {left}; {memory} KiB at most")
    if any(int(word) for word in left.replace(",", "").split() if word.isdigit()):
        wrong.append(f"left behind: {left}")
    if memory > MOST_KIB:
        wrong.append(f"{memory} KiB of memory, more than {MOST_KIB}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
