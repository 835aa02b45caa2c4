"""Relative links of Markdown files lead to files of the tree, and to headings that exist."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from tree import finish, text_of, tracked

LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)


def anchors(name: str) -> set[str]:
    """The anchors of the headings as the usual renderers make them."""
    headings = HEADING.findall(CODE.sub("", text_of(name)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problems() -> Iterator[str]:
    for name in tracked(".md"):
        text = INLINE_CODE.sub("", CODE.sub("", text_of(name)))
        for link in LINK.findall(text):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if target.startswith("..") or not Path(target).exists():
                yield f"{name}: nothing is at {link}"
            elif anchor and target.endswith(".md") and anchor not in anchors(target):
                yield f"{name}: {target} has no heading #{anchor}"


if __name__ == "__main__":
    finish(problems())
