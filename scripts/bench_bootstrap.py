"""Measures kvferry-bootstrap and writes the table of docs/performance.md between the markers of bootstrap.

Usage: bench_bootstrap.py FILE BINARIES   (a folder with kvferry-bootstrap and kvferry-bootstrap-bench)
The program runs in a process of its own; the clients of kvferry-bootstrap-bench and those who abuse it are two others.
Exit status 1 when a goal is missed.
"""

import contextlib
import datetime
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tables import replace_between

BEGIN, END = "<!-- bootstrap: written by scripts/bench -->", "<!-- end of bootstrap -->"
CLIENTS, WORKERS, RATE, IDLE, TRICKLING = 200, 64, 2000, 5000, 400
Figures = dict[str, Any]


class Program:
    """kvferry-bootstrap on a free port."""

    def __init__(self, binary: Path) -> None:
        limits = ["--head-timeout", "2s", "--body-timeout", "2s", "--idle-timeout", "300s"]
        self.process = subprocess.Popen(
            [binary, "--port", "0", *limits], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "listening on" in line)
        self.port = int(line.rsplit(":", 1)[1])
        # What it says later must not fill the pipe.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def load(bench: Path, port: int, seconds: int, rate: int) -> Figures:
    command = [bench, "--url", f"http://127.0.0.1:{port}", "--clients", CLIENTS, "--workers", WORKERS]
    words = [str(word) for word in [*command, "--seconds", seconds, "--rate", rate]]
    figures: Figures = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


@contextlib.contextmanager
def repeated(action: Callable[[], None]) -> Iterator[None]:
    """Runs an action again and again in a thread, until the block is left."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def abuse(port: int) -> Iterator[None]:
    """Idle connections, requests that trickle in, and bodies of 10 MB, one after the other, until the block is left."""
    idle = [dial(port) for _ in range(IDLE)]
    selector = selectors.DefaultSelector()

    def start_trickle() -> None:
        wire = dial(port)
        wire.sendall(b"GET /query HTTP/1.1\r\nHost: x\r\nX-Slow:")
        selector.register(wire, selectors.EVENT_READ)

    def trickle() -> None:
        for key, _ in selector.select(0):  # answered 408, or closed: another takes its place
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            start_trickle()
        for wire in [key.fileobj for key in selector.get_map().values()]:
            with contextlib.suppress(OSError):
                wire.send(b"x")  # type: ignore[union-attr]
        time.sleep(0.2)

    head = b"POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n"

    def large_body() -> None:
        with contextlib.suppress(OSError), dial(port) as wire:
            wire.sendall(head + bytes(10 << 20))
        time.sleep(0.05)

    for _ in range(TRICKLING):
        start_trickle()
    with repeated(trickle), repeated(large_body):
        yield
    for wire in [*idle, *(key.fileobj for key in selector.get_map().values())]:
        wire.close()  # type: ignore[union-attr]


def measure(binaries: Path) -> tuple[list[list[str]], bool]:
    bench = binaries / "kvferry-bootstrap-bench"
    program = Program(binaries / "kvferry-bootstrap")
    rows: list[list[str]] = []
    reached_all = True

    def row(what: str, value: str, goal: str = "", reached: bool = True) -> None:
        nonlocal reached_all
        reached_all = reached_all and reached
        rows.append([what, value, f"{'reached' if reached else '**missed**'}: {goal}" if goal else ""])

    def latencies(figures: Figures) -> str:
        return " / ".join(f"{figures[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")) + " ms"

    try:
        most = load(bench, program.port, 5, 0)
        answered = most["per_second"]
        row("`GET /query` a second, as many as can be", f"{answered:.0f}", f">= {RATE}", answered >= RATE)
        before, began = program.cpu_seconds(), time.monotonic()
        quiet = load(bench, program.port, 5, RATE)
        cpu = 100 * (program.cpu_seconds() - before) / (time.monotonic() - began)
        row(f"the same at {RATE} a second: p50 / p99 / worst", latencies(quiet))
        row("CPU of one core that the server takes for that", f"{cpu:.0f} %")
        memory = program.resident_mb()
        with abuse(program.port):
            beside = load(bench, program.port, 10, RATE)
            grown = program.resident_mb() - memory
        kept = beside["per_second"] >= 0.95 * RATE
        row(f"beside {IDLE} idle connections, {TRICKLING} that trickle, bodies of 10 MB", latencies(beside))
        row("`GET /query` a second that the others keep", f"{beside['per_second']:.0f}", f">= {0.95 * RATE:.0f}", kept)
        row("memory that all of them cost the server", f"{grown:.0f} MB", "<= 64 MB", grown <= 64)
    finally:
        program.end()
    seen = json.loads(subprocess.run([bench, "--restarts", "20"], check=True, stdout=subprocess.PIPE).stdout)
    worker, server = seen["worker"], seen["server"]
    value = f"{worker['p50_ms']:.0f} / {worker['max_ms']:.0f} ms"
    row("restart of a worker, seen by clients: p50 / worst of 20", value, "<= 1 s", worker["max_ms"] <= 1000)
    value = f"{server['p50_ms']:.0f} / {server['max_ms']:.0f} ms"
    row("restart of the server, its worker back with the next heartbeat", value)
    return rows, reached_all


def main() -> None:
    page, binaries = Path(sys.argv[1]), Path(sys.argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows, reached = measure(binaries)
    lines = [
        f"Measured on {datetime.date.today()} on a machine with {os.cpu_count()} cores, server and clients on it.",
        "",
        "| what | value | goal |",
        "|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    print("\n".join(lines))
    replace_between(page, BEGIN, END, lines)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
