"""Which sources may be compiled together, in one translation unit: those that give nothing of their own the same name.
Run by CMake (`units.py MOST SOURCE...` prints the number of each source's unit) and used by the check tidy."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

# A name that stands at the left edge, where clang-format puts what is in a namespace but in nothing else: the word
# before the first of ( = { ; [ or a colon with a space.
NAME = re.compile(
    r"^(?!//|namespace\b|using namespace\b|extern\b|template\b|[}#])[^\s(={;\[][^(={;\[]*?"
    r"(?<!::)(?<!~)\b(\w+)(?: final)?\s*(?:[(={;\[]|: |$)"
)
MACRO = re.compile(r"^#\s*define (\w+)")
USING = re.compile(r"^using [\w:]+(?:::| namespace )\w+;", re.MULTILINE)
TEST = re.compile(r"^TYPED_TEST|^TEST(?:_[FP])?\((\w+), (\w+)\)")


def names_in(source: str) -> set[str]:
    names: set[str] = set()
    for line in Path(source).read_text(encoding="utf-8", errors="replace").splitlines():
        if found := TEST.match(line):
            names.add(f"{found[1]} {found[2]}")
        elif found := NAME.match(line) or MACRO.match(line):
            names.add(found[1])
    return names


def units(sources: Iterable[str], most: int) -> list[list[str]]:
    """The sources, in order, in units of at most `most`. What one of them takes from another namespace would mean the
    same in the others, so all of a unit take the same."""
    made: list[tuple[list[str], set[str], set[str]]] = []
    for source in sources:
        names = names_in(source)
        used = set(USING.findall(Path(source).read_text(encoding="utf-8", errors="replace")))
        fitting = next((unit for unit in made if len(unit[0]) < most and not names & unit[1] and used == unit[2]), None)
        if fitting is None:
            made.append(([source], set(names), used))
        else:
            fitting[0].append(source)
            fitting[1].update(names)
    return [members for members, _, _ in made]


if __name__ == "__main__":
    numbers = {source: number for number, unit in enumerate(units(sys.argv[2:], int(sys.argv[1]))) for source in unit}
    print(";".join(str(numbers[source]) for source in sys.argv[2:]))
