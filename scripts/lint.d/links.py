"""What Markdown files name exists: files and headings by relative links, functions by `Class::function`.

In a table with the columns "model" and "code", the words of the first stand in the Promela model beside the file.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from tree import finish, text_of, tracked

LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
FUNCTION = re.compile(r"`([A-Z]\w*)::(\w+)`")
MODEL_TABLE = re.compile(r"^\| model \| code \|\n(?:\|.*\n)+", re.MULTILINE)
HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)


def anchors(name: str) -> set[str]:
    """The anchors of the headings as the usual renderers make them."""
    headings = HEADING.findall(CODE.sub("", text_of(name)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_functions(text: str, sources: list[str]) -> Iterator[str]:
    for holder, function in sorted(set(FUNCTION.findall(text))):
        defined = re.compile(rf"\b{holder}::{function}\b")
        inline = re.compile(rf"\b(?:class|struct|enum)\b[^;{{]*\b{holder}\b[^;]*{{")
        called = re.compile(rf"\b{function}(?:\(| = |;)")  # a function, or a member with its default
        if not any(defined.search(source) or (inline.search(source) and called.search(source)) for source in sources):
            yield f"{holder}::{function}"


def missing_steps(name: str, text: str) -> Iterator[str]:
    """Words of a model's table that its model does not have."""
    for table in MODEL_TABLE.findall(text):
        model = "".join(path.read_text() for path in sorted(Path(name).parent.glob("*.pml")))
        steps = " ".join(row.split("|")[1] for row in table.splitlines()[2:])
        for word in re.findall(r"`(\w+)`", steps):
            if not re.search(rf"\b{word}\b", model):
                yield word


def problems() -> Iterator[str]:
    sources = [text_of(name) for name in tracked(".cc", ".h")]
    for name in tracked(".md"):
        for function in missing_functions(text_of(name), sources):
            yield f"{name}: there is no {function}"
        for word in missing_steps(name, text_of(name)):
            yield f"{name}: the model beside it has no {word}"
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
