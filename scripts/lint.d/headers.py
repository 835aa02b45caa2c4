"""Each header compiles alone: a source that includes nothing else is compiled, through ccache."""

import subprocess
from pathlib import Path

from compilation import prepare
from tree import finish, in_parallel, tracked

STUBS = Path("build/tidy/headers")


def flags_of(command: list[str]) -> list[str]:
    """The include paths and definitions of a compile command."""
    flags = []
    for at, word in enumerate(command):
        if word.startswith(("-I", "-D", "-std=")):
            flags.append(word)
        elif word == "-isystem":
            flags += [word, command[at + 1]]
    return flags


def main() -> None:
    commands = prepare()
    flags: dict[str, None] = {}  # an ordered set: the flags of all layers together, so that any header finds its own
    for command in commands.values():
        pending = ""
        for flag in flags_of(command):
            if flag == "-isystem":
                pending = flag
            else:
                flags[(pending + " " + flag).strip()] = None
                pending = ""
    words = [word for flag in flags for word in flag.split(" ")]
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
