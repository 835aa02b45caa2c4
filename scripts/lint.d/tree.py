"""What every check of scripts/lint shares: the tracked files, and a way to report."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CPP = (".cc", ".h")


def tracked(*endings: str) -> list[str]:
    """Tracked files, relative to the root, that exist and end in one of `endings` (all without)."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [
        name for name in listed.split("\0") if name and Path(name).is_file() and (not endings or name.endswith(endings))
    ]


def text_of(name: str) -> str:
    return Path(name).read_text(encoding="utf-8", errors="replace")


def numbered_lines(names: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    for name in names:
        for number, line in enumerate(text_of(name).splitlines(), 1):
            yield name, number, line


def finish(problems: Iterable[str]) -> None:
    """Prints the problems and ends the check: status 1 if there are any."""
    found = sorted(set(problems))
    for problem in found:
        print(problem)
    sys.exit(1 if found else 0)


def in_parallel(work: Callable[[str], list[str]], names: Iterable[str]) -> list[str]:
    """Runs `work`, which waits for a child process, for each name, one per core, and joins the problems."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return [problem for problems in pool.map(work, names) for problem in problems]
