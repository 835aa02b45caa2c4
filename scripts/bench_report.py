"""Writes the tables of docs/performance.md from the documents that scripts/bench has gathered.

Usage: bench_report.py FILE KVFERRY.json [PEER.json ...] --auth PSK.json MTLS.json
What is between the two markers of FILE is replaced; the rest of it is for people to write. Exit status 3: a goal beside
another library is missed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tables import replace_between

BEGIN, END = "<!-- figures: written by scripts/bench -->", "<!-- end of figures -->"
MISSED = 3
Document = dict[str, Any]

# Beside other libraries, for reads and writes: block, count, fabric, label of the library, what its time is divided by.
NIXL, NIXL_TCP, MOONCAKE = "NIXL, UCX's choice", "NIXL, UCX_TLS=tcp", "Mooncake, tcp"
PEER_GOALS = (
    (4 << 10, 1, "local", NIXL, 1.0),
    (4 << 10, 1, "tcp", MOONCAKE, 1.0),
    (4 << 10, 256, "local", NIXL, 5.0),
    (4 << 10, 256, "tcp", NIXL_TCP, 10.0),
    (4 << 10, 256, "tcp", MOONCAKE, 10.0),
    (64 << 20, 1, "local", NIXL, 1.0),
    (64 << 20, 1, "tcp", MOONCAKE, 1.3),
)


def size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} B"


def shape(case: Document) -> str:
    return size(case["block"]) if case["count"] == 1 else f"{case['count']} x {size(case['block'])}"


def number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def outcome(verdict: Document | None) -> str:
    if verdict is None:
        return ""
    return f"{'reached' if verdict['reached'] else '**missed**'}: {verdict['goal']}"


def case_row(case: Document) -> list[str]:
    raw = number(case["limit_us"]["p50"])
    if case["four_raw_us"] > 0:
        raw += f" (four: {number(case['four_raw_us'])})"
    us = case["us"]
    return [
        f"{case['fabric']} {case['operation']} {shape(case)}",
        *(number(us[name]) for name in ("p50", "p90", "p99", "p999")),
        f"{case['gb_per_s']:.2f}",
        number(case["cpu_s_per_gb"]) if case["cpu_s_per_gb"] is None else f"{case['cpu_s_per_gb']:.2f}",
        raw,
        f"{case['ratio']:.2f}",
        number(case["memcpy_us"]),
        outcome(case["verdict"]),
    ]


def case_table(document: Document) -> list[str]:
    head = ["case", "p50 us", "p90", "p99", "p99.9", "GB/s", "CPU s/GB", "raw us", "ratio", "memcpy us", "goal"]
    return ["## Transfers", "", *table(head, [case_row(case) for case in document["cases"]])]


def figure_table(document: Document) -> list[str]:
    rows = [[f["name"], f"{f['value']:.2f} {f['unit']}", outcome(f["verdict"])] for f in document["figures"]]
    return ["## Control figures", "", *table(["what", "value", "goal"], rows)] if rows else []


def peer_verdicts(case: Document, own: Document, others: Document) -> list[Document]:
    """Of one case, by microseconds: `own` by fabric, `others` by label. What was not measured is judged by nobody."""
    verdicts = []
    for block, count, fabric, label, divisor in PEER_GOALS:
        mine, theirs = own.get(fabric), others.get(label)
        if (block, count) != (case["block"], case["count"]) or mine is None or theirs is None:
            continue
        goal = f"{fabric} <= " + (label if divisor == 1 else f"1/{divisor:g} of {label}")
        verdicts.append({"goal": goal, "reached": mine <= theirs / divisor})
    return verdicts


def peer_table(document: Document, peers: list[Document]) -> tuple[list[str], bool]:
    """And whether all goals beside other libraries are reached."""
    if not peers:
        return [], True
    key = ("operation", "block", "count")
    found = {p["label"]: {tuple(c[k] for k in key): c["us"] for c in p["cases"]} for p in peers}
    ours = {(c["fabric"], *(c[k] for k in key)): c["us"]["p50"] for c in document["cases"]}
    rows, all_reached = [], True
    for case in peers[0]["cases"]:
        which = tuple(case[k] for k in key)
        own = {fabric: ours.get((fabric, *which)) for fabric in ("local", "tcp")}
        others = {label: cases.get(which) for label, cases in found.items()}
        verdicts = peer_verdicts(case, own, others)
        all_reached = all_reached and all(verdict["reached"] for verdict in verdicts)
        told = "; ".join(map(outcome, verdicts))
        figures = [number(value) for value in (*own.values(), *others.values())]
        rows.append([f"{case['operation']} {shape(case)}", *figures, told])
    contact = [f"{p['first_contact_ms']:.1f} ms" for p in peers]
    rows.append(["first contact and 4 KiB read", "see above", "see above", *contact, ""])
    head = ["us, median", "kvferry local", "kvferry tcp", *(p["label"] for p in peers), "goal"]
    note = "A `?` is a case that was not measured, or one whose bytes were wrong."
    return ["## Other libraries, the same cases", "", note, "", *table(head, rows)], all_reached


def auth_table(modes: dict[str, Document]) -> list[str]:
    """What TLS costs. The suite of goals is in mode open, and has the same cases."""

    def figure(document: Document, name: str) -> str:
        return next((f"{f['value']:.2f} {f['unit']}" for f in document["figures"] if f["name"] == name), "?")

    def case(document: Document, block: int, *path: str) -> str:
        fits = (c for c in document["cases"] if (c["fabric"], c["operation"], c["count"]) == ("tcp", "read", 1))
        value = next((c for c in fits if c["block"] == block), None)
        for key in path:
            value = value and value[key]
        return "?" if value is None else f"{value:.2f}"

    rows = []
    for fabric in ("local", "tcp"):
        for regions in (1, 128, 4096):
            name = f"first contact and 4 KiB read, {fabric}, {regions} regions"
            rows.append([name, *(figure(document, name) for document in modes.values())])
    shown = {"us": ("us", "p50"), "GB/s": ("gb_per_s",), "times raw TCP": ("ratio",), "CPU s/GB": ("cpu_s_per_gb",)}
    for name, path in shown.items():
        for block in (4 << 10, 64 << 20):
            row = [f"tcp read {size(block)}, {name}", *(case(document, block, *path) for document in modes.values())]
            rows.append(row)
    return ["## Authentication", "", *table(["what", *modes], rows)]


def main() -> int:
    arguments = sys.argv[1:]
    split = arguments.index("--auth")
    page, *files = (Path(name) for name in arguments[:split])
    document, *peers = (json.loads(file.read_text()) for file in files)
    psk, mtls = (json.loads(Path(file).read_text()) for file in arguments[split + 1 :])
    beside_peers, all_reached = peer_table(document, peers)
    lines = [
        f"Measured on {document['date']} on a machine with {document['cores']} cores, both processes on it.",
        "",
        *case_table(document),
        *figure_table(document),
        *auth_table({"open": document, "psk": psk, "mtls": mtls}),
        *beside_peers,
    ]
    replace_between(page, BEGIN, END, lines)
    return 0 if all_reached else MISSED


if __name__ == "__main__":
    sys.exit(main())
