#!/usr/bin/env python3
"""Runs the same work through kvferry-proxy, a bare TCP relay and any other proxy, and prints a table.

    proxy/bench/run.py --bin build/release/bin
    proxy/bench/run.py --bin build/release/bin --other "vllm-router --port {port} --prefill http://127.0.0.1:{prefill} \
        {bootstrap} --decode http://127.0.0.1:{decode} --vllm-pd-disaggregation" --cases short,stream
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# name -> (options of kvferry-proxy-load, options of kvferry-proxy-mock, which figure counts)
CASES: dict[str, tuple[str, str, str]] = {
    "one": ("--clients 1 --requests 3000", "", "total_p50_us"),
    "short": ("--clients 64 --requests 20000", "", "cpu_us_request"),
    "stream": ("--clients 64 --requests 640 --stream", "--events 200 --pause-ms 20", "cpu_us_piece"),
    "setup": ("--clients 16 --requests 4000 --stream --fresh", "--events 1", "cpu_us_request"),
    "large": ("--clients 4 --requests 400 --prompt-bytes 1048576", "", "cpu_us_request"),
    "burst": ("--clients 2000 --requests 2000 --stream", "--events 20 --pause-ms 100", "first_p99_us"),
    "open": ("--clients 9000 --requests 9000 --stream", "--events 3 --pause-ms 8000", "rss_kib"),
    "slow": ("--clients 5000 --requests 5000 --stream --stall-ms 20000", "--events 400 --event-bytes 2000", "rss_kib"),
    "closing": ("--clients 64 --requests 10000", "--close", "failed"),
    "rude": ("--clients 200 --requests 100000 --fresh --leave", "", "failed"),
}

# Clients that leave while 64 streams go on: what is counted is on the clock of one program, see its --help.
LEAVE = "--clients 16 --requests 4000 --streams 64"


def free_ports(count: int) -> list[int]:
    """Below those that the kernel lends to connections: it would give one away before it is used."""
    found: list[int] = []
    for port in random.sample(range(20000, 32768), 12768):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    sys.exit("no free ports are left")


def wait_for(port: int, process: subprocess.Popen[bytes], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"{process.args} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on {port}")


@contextmanager
def running(words: list[str], port: int) -> Iterator[int]:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        time.sleep(0.3)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--cases", default=",".join([*CASES, "leave"]))
    parser.add_argument("--other", action="append", default=[], help="command line of another proxy, see above")
    parser.add_argument("--requests", help="of each case, instead of its own number: some proxies are slow")
    options = parser.parse_args()

    cases = options.cases.split(",")
    names = ("port", "prefill", "decode", "bootstrap")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    proxies = {
        "relay": f"{options.bin}/kvferry-proxy-relay --port {{port}} --prefill {{prefill}} --decode {{decode}}",
        "relay, decoder only": f"{options.bin}/kvferry-proxy-relay --port {{port}} --decode {{decode}}",
        "kvferry-proxy": f"{options.bin}/kvferry-proxy --port {{port}} --admin-port -1 --access-log /dev/null "
        "--log-level error --prefill http://127.0.0.1:{prefill} {bootstrap} --decode http://127.0.0.1:{decode}",
    }
    for command in options.other:
        words = [word.rsplit("/", 1)[-1] for word in shlex.split(command)]
        proxies[next(word for word in words if not word.startswith("python"))] = command

    print("| case | through | figure | value | first p50/p99 us | total p50/p99 us | per s | failed | RSS KiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        if case == "leave":
            continue
        _, mock, _ = CASES[case]
        mock_words = shlex.split(
            f"{options.bin}/kvferry-proxy-mock --prefill-port {ports['prefill']} --decode-port {ports['decode']} "
            f"--bootstrap-port {ports['bootstrap']} {mock}"
        )
        with running(mock_words, ports["decode"]) as mock_pid:
            if case == "one":
                report(options, case, "the mock itself", (ports["decode"], mock_pid))
            for name, command in proxies.items():
                if case in ("closing", "rude", "large", "open", "slow") and name.startswith("relay"):
                    continue
                with running(shlex.split(command.format(**ports)), ports["port"]) as pid:
                    before = descriptors(pid)
                    report(options, case, name, (ports["port"], pid))
                    if case == "rude" and name == "kvferry-proxy":
                        print(f"left behind: {leftovers(pid, before, ports['port'])}", flush=True)
    if "leave" in cases:
        measure_leaving(options.bin, proxies["kvferry-proxy"], ports)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def leftovers(pid: int, before: int, port: int) -> str:
    """What clients that are gone have left, once it is nothing or 60 s have passed."""
    names = ("pinned", "releasing", "given_up")
    end = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            lines = page.read().decode().splitlines()
        values = {name: int(float(value)) for name, value in (line.split()[:2] for line in lines if line[0] == "k")}
        parcels = {name: values[f"kvferry_proxy_parcels_{name}"] for name in names}
        # Unused connections to backends are kept for some seconds.
        more = descriptors(pid) - before - values["kvferry_proxy_upstream_idle"]
        if time.monotonic() > end or (more <= 0 and not any(parcels.values())):
            return f"{max(more, 0)} descriptors, " + ", ".join(f"{n} parcels {name}" for name, n in parcels.items())
        time.sleep(0.2)


def measure_leaving(bin_folder: Path, proxy: str, ports: dict[str, int]) -> None:
    flags = {"port": "--port", "prefill": "--prefill-port", "decode": "--decode-port", "bootstrap": "--bootstrap-port"}
    words = [f"{bin_folder}/kvferry-proxy-leave", *shlex.split(LEAVE)]
    words += [f"{flag}={ports[name]}" for name, flag in flags.items()]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as leaving:
        wait_for(ports["decode"], leaving)
        with running(shlex.split(proxy.format(**ports)), ports["port"]):
            assert leaving.stdout is not None
            seen = json.loads(leaving.stdout.read())
    for name, goal in (("prefill_closed", 20), ("decode_closed", 20), ("released", 100)):
        one = seen[name]
        figures = f"p50 {one['p50_ms']} ms, p99 {one['p99_ms']} ms of {one['count']}, goal p99 < {goal} ms"
        print(f"| leave | kvferry-proxy | {name} | {figures} |", flush=True)


def report(options: argparse.Namespace, case: str, name: str, server: tuple[int, int]) -> None:
    """Prints one row: the load of `case` on the server with this port and process id."""
    port, pid = server
    load, _, figure = CASES[case]
    words = [f"{options.bin}/kvferry-proxy-load", "--port", str(port), "--pid", str(pid), *shlex.split(load)]
    if options.requests:
        words[words.index("--requests") + 1] = options.requests
    answer = subprocess.run(words, capture_output=True, check=True, timeout=600)
    seen = json.loads(answer.stdout)
    print(
        f"| {case} | {name} | {figure} | {seen[figure]} | {seen['first_p50_us']}/{seen['first_p99_us']} "
        f"| {seen['total_p50_us']}/{seen['total_p99_us']} | {seen['per_s']} | {seen['failed']} | {seen['rss_kib']} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
