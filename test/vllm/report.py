"""The table of docs/performance.md that `run.py --timings` writes."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path

BEGIN, END = "<!-- vllm: written by scripts/test_vllm --timings -->", "<!-- end of vllm -->"
COLUMNS = {
    "prefill_ms": "prefill leg ms",
    "decode_ms": "decode leg ms",
    "handover_ms": "hand-over ms",
    "alone_ms": "decoder alone ms",
}


def write(document: Path, measured: Mapping[str, Mapping[str, float]]) -> None:
    """What is between the two markers is replaced; the rest of the document is for people to write."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no two markers {BEGIN} and {END}")
    told = (
        f"Measured on {datetime.date.today()} on a machine with {os.cpu_count()} cores, all servers on it; medians.",
        "",
        "| between vLLM's servers | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
        *(f"| {name} | " + " | ".join(str(legs[key]) for key in COLUMNS) + " |" for name, legs in measured.items()),
    )
    document.write_text(before + begin + "\n" + "\n".join(told) + "\n" + end + after)
