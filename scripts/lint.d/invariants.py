"""A comment that names an invariant (`// I2, DESIGN.md`) names one that DESIGN.md states (`**I2 No reuse ...**`)."""

import re
from collections.abc import Iterator
from pathlib import Path

from tree import finish, numbered_lines, text_of, tracked

DESIGN = "DESIGN.md"
# In C++ the name must stand in a comment; I1..I99 as a word of its own.
COMMENT = re.compile(r"(?://|/\*|^\s*\*|^\s*#)(.*)")
NAME = re.compile(r"(?<![\w.])I([1-9]\d?)(?![\w.]\w|\w)")
STATED = re.compile(r"\*\*I([1-9]\d?)\b")


def problems() -> Iterator[str]:
    stated = set(STATED.findall(text_of(DESIGN))) if Path(DESIGN).is_file() else set()
    every = tracked(".cc", ".h", ".proto", ".py", ".md")
    files = [name for name in every if not name.startswith(("scripts/lint.d/", "test/lint/"))]
    for name, number, line in numbered_lines(files):
        comment = COMMENT.search(line)
        words = line if name.endswith(".md") else comment.group(1) if comment else ""
        for invariant in NAME.findall(words):
            if invariant not in stated:
                yield f"{name}:{number}: names I{invariant}, which {DESIGN} does not state"


if __name__ == "__main__":
    finish(problems())
