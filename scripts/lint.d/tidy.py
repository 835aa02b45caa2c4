"""clang-tidy over the tracked sources that the preset tidy compiles, but for test cases: to it they are GoogleTest's
macros, which cost seconds each and hide what it could find. Most of its time goes into headers of libraries, so sources
of one target that share no name are looked at together, in one translation unit. A clean result is kept under a name
made of all that it depends on, so that what did not change is not looked at again: the tool, .clang-tidy, the compile
command, and the text of the sources and of the project's headers that they include."""

import hashlib
import subprocess
from collections import defaultdict
from pathlib import Path

from compilation import BUILD, prepare, project_includes
from tree import finish, in_parallel, text_of, tracked
from units import units

TEST_CASES = ("_test.cc", "_fuzz.cc")
CACHE = Path("build/tidy-cache")
UNITS = BUILD / "units"
TOGETHER = 12  # sources in one unit: two cores stay busy to the end, and memory stays below 1 GB
REPORTED = r"(^|/)(common|engine|http|bootstrap|proxy|sim|bindings|test)/.*\.(h|cc)$"


def flags_in(command: list[str]) -> tuple[str, ...]:
    """The command without its compiler, its source and what it writes."""
    flags: list[str] = []
    words = iter(command[next(i for i, word in enumerate(command) if word.endswith("clang++")) + 1 :])
    for word in words:
        if word in ("-o", "-c", "-MT", "-MF"):
            next(words)
        elif word != "-MD":
            flags.append(word)
    return tuple(flags)


def units_of(commands: dict[str, list[str]], sources: list[str]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Sources with the same flags and without a name in common, at most TOGETHER of them."""
    by_flags: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for source in sources:
        by_flags[flags_in(commands[source])].append(source)
    return [(flags, unit) for flags, alike in by_flags.items() for unit in units(alike, TOGETHER)]


def main() -> None:
    commands = prepare()
    sources = [name for name in tracked(".cc") if name in commands and not name.endswith(TEST_CASES)]
    tool = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True, check=True).stdout
    common = tool + text_of(".clang-tidy")
    CACHE.mkdir(parents=True, exist_ok=True)
    UNITS.mkdir(parents=True, exist_ok=True)

    def key_of(unit: tuple[tuple[str, ...], list[str]]) -> str:
        flags, members = unit
        digest = hashlib.sha256((common + "\0".join(flags)).encode())
        for name in sorted(set().union(*map(project_includes, members))):
            digest.update(f"\0{name}\0{text_of(name)}".encode())
        return digest.hexdigest()

    def tidy(unit: tuple[tuple[str, ...], list[str]]) -> list[str]:
        flags, members = unit
        key = key_of(unit)
        clean = CACHE / key
        if clean.exists():
            clean.touch()  # its age says when it was last needed
            return []
        source = UNITS / f"{key[:16]}.cc"
        source.write_text("".join(f'#include "{name}"\n' for name in members), encoding="utf-8")
        command = ["clang-tidy", "--quiet", "--warnings-as-errors=*", f"--header-filter={REPORTED}", str(source), "--"]
        ran = subprocess.run([*command, *flags, "-I."], capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            clean.touch()
            return []
        return [f"{' '.join(members)}\n{ran.stdout.strip() or ran.stderr.strip()}"]

    finish(in_parallel(tidy, units_of(commands, sources)))


if __name__ == "__main__":
    main()
