"""Lines and tables for people; colours only on a terminal."""

import os
import sys
from typing import TextIO

GREEN, RED, DIM, BOLD = "32", "31", "2", "1"


class Show:
    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.colours = out.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colours else text

    def line(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def step(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        self.line(f"{self.paint(word, BOLD)} {rest}")

    def note(self, text: str) -> None:
        print(f"demo: {text}", file=sys.stderr, flush=True)

    def verdict(self, good: bool, text: str) -> str:
        return self.paint(text, GREEN if good else RED)

    def table(self, titles: list[str], rows: list[list[str]]) -> None:
        widths = [max(len(row[at]) for row in [titles, *rows]) for at in range(len(titles) - 1)]

        def joined(row: list[str]) -> str:
            cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
            return "  ".join([*cells, row[-1]])

        self.line("")
        self.line(self.paint(joined(titles), DIM))
        for row in rows:
            self.line(joined(row))
        self.line("")
