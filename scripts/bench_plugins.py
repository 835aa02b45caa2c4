"""Measures the plug-ins' fabrics beside other programs and writes the table of docs/rdma.md between its markers.

Usage: bench_plugins.py FILE BINARIES PYTHON
BINARIES has kvferry-bench and kvf-ofi-rma, PYTHON can import NIXL. What is compared takes turns, and medians of the
turns count. Exit status 1 when a goal is missed.
"""

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from tables import replace_between

BEGIN, END = "<!-- plug-ins: written by scripts/bench -->", "<!-- end of plug-ins -->"
TURNS = 7
PEERS = Path(__file__).parents[1] / "engine/bench/peers/peers.py"
SHARED = {"KVFERRY_UCX_TLS": "posix,tcp,self", "KVFERRY_UCX_MM_ERROR_HANDLING": "y"}


def output_of(command: list[str | Path], settings: dict[str, str]) -> str:
    environment = {**os.environ, **settings}
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return run.stdout


class Table:
    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.reached = True

    def add(self, what: str, values: tuple[float, float], unit: str, goal: tuple[str, bool] | None = None) -> None:
        ours, theirs = (f"{value:.0f} us" if unit == "us" else f"{value:.2f} {unit}" for value in values)
        said = ""
        if goal is not None:
            self.reached = self.reached and goal[1]
            said = f"{'reached' if goal[1] else '**missed**'}: {goal[0]}"
        self.rows.append([what, ours, theirs, f"{values[0] / values[1]:.2f}", said])


def measured(binaries: Path, fabric: str, shape: tuple[str, int], settings: dict[str, str]) -> dict[str, Any]:
    """The cases of one turn by their operation."""
    block, count = shape
    layout = ["--layout", "scattered"] if fabric == "ucx" else []
    words = ["--self", "--fabric", fabric, "--block", block, "--count", str(count), "--op", "read,write"]
    text = output_of([binaries / "kvferry-bench", *words, *layout, "--seconds", "1", "--json", "-"], settings)
    return {case["operation"]: case for case in json.loads(text[text.index("{") :])["cases"]}


def shared_memory(binaries: Path, python: str, table: Table) -> None:
    ours: dict[str, list[float]] = {"read": [], "write": []}
    theirs: dict[str, list[float]] = {"read": [], "write": []}
    for turn in range(TURNS):
        print(f"ucx over shared memory, turn {turn + 1} of {TURNS}", flush=True)
        for operation, case in measured(binaries, "ucx", ("4K", 256), SHARED).items():
            ours[operation].append(case["us"]["p50"])
        text = output_of([python, PEERS, "nixl", "NIXL", "4096x256"], {"KVFERRY_BENCH_SECONDS": "1"})
        document = json.loads(next(line for line in text.splitlines() if line.startswith('{"label"')))
        for case in document["cases"]:
            if case["us"] is None:
                sys.exit(f"NIXL's {case['operation']} failed")
            theirs[case["operation"]].append(case["us"])
    for operation in ("read", "write"):
        us, peer = median(ours[operation]), median(theirs[operation])
        what = f"`ucx` over shared memory, {operation} of 256 x 4 KiB, beside NIXL"
        table.add(what, (us, peer), "us", ("<= 1/2", us <= peer / 2))


def sockets(binaries: Path, table: Table) -> None:
    ours: dict[str, list[float]] = {"read": [], "write": []}
    in_windows: dict[str, list[float]] = {"read": [], "write": []}
    always: dict[str, list[float]] = {"read": [], "write": []}
    for turn in range(TURNS):
        print(f"ofi over tcp, turn {turn + 1} of {TURNS}", flush=True)
        for operation, case in measured(binaries, "ofi", ("1M", 64), {"KVFERRY_OFI_PROVIDER": "tcp"}).items():
            ours[operation].append(case["gb_per_s"])
        for operation in ("read", "write"):
            text = output_of([binaries / "kvf-ofi-rma", operation, "1048576", "1"], {})
            first, second = re.findall(r"([0-9.]+) GB/s", text)
            in_windows[operation].append(float(first))
            always[operation].append(float(second))
    for operation in ("read", "write"):
        rate, window, full = median(ours[operation]), median(in_windows[operation]), median(always[operation])
        what = f"`ofi` over tcp, {operation} of 64 x 1 MiB, beside libfabric"
        goal = (">= 0.9", rate >= 0.9 * window)
        table.add(f"{what} with 64 posted and waited for, as `fi_rma_bw` does", (rate, window), "GB/s", goal)
        table.add(f"{what} with 64 always in flight", (rate, full), "GB/s")


def main() -> None:
    page, binaries, python = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    table = Table()
    shared_memory(binaries, python, table)
    sockets(binaries, table)
    lines = [
        f"Measured on {datetime.date.today()} on a machine with {os.cpu_count()} cores, medians of {TURNS} turns.",
        "",
        "| what | kvferry | beside | ratio | goal |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in table.rows),
        "",
    ]
    print("\n".join(lines))
    replace_between(page, BEGIN, END, lines)
    sys.exit(0 if table.reached else 1)


if __name__ == "__main__":
    main()
