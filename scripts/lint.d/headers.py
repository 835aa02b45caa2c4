"""Each header compiles alone: a source that includes nothing else is compiled, through ccache."""

import subprocess
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path

from compilation import prepare
from tree import finish, in_parallel, tracked

STUBS = Path("build/tidy/headers")


def flags_of(commands: Iterable[list[str]]) -> list[str]:
    """The include paths and the definitions of libraries of all layers together, so that any header finds its own."""
    flags: dict[tuple[str, ...], None] = {}  # an ordered set
    for command in commands:
        for word, following in pairwise([*command, ""]):
            if word == "-isystem":
                flags[word, following] = None
            elif word.startswith(("-I", "-std=")) or (word.startswith("-D") and not word.startswith("-DKVF")):
                flags[(word,)] = None
    return list(chain.from_iterable(flags))


def main() -> None:
    words = flags_of(prepare().values())
    STUBS.mkdir(parents=True, exist_ok=True)

    def compile_alone(header: str) -> list[str]:
        stub = STUBS / (header.replace("/", "__") + ".cc")
        source = f'#include "{header}"\n#include "{header}"  // twice: its guard is there\n'
        if not stub.is_file() or stub.read_text(encoding="utf-8") != source:
            stub.write_text(source, encoding="utf-8")
        compiler = ["ccache", "clang++", *words, "-I.", "-Wall", "-Wextra", "-Werror", "-c", str(stub)]
        ran = subprocess.run([*compiler, "-o", str(stub) + ".o"], capture_output=True, text=True, check=False)
        return [] if ran.returncode == 0 else [f"{header} does not compile alone\n" + ran.stderr[:2000]]

    finish(in_parallel(compile_alone, tracked(".h")))


if __name__ == "__main__":
    main()
