"""clang-tidy over the tracked sources that the preset tidy compiles, but for test cases: to it they are GoogleTest's
macros, which cost seconds each and hide what it could find. A clean result is kept under a name made of all
that it depends on, so that what did not change is not looked at again: the tool, .clang-tidy, the compile command, and
the text of the source and of the project's headers that it includes."""

import hashlib
import subprocess
from pathlib import Path

from compilation import BUILD, prepare, project_includes
from tree import finish, in_parallel, text_of, tracked

TEST_CASES = ("_test.cc", "_fuzz.cc")
CACHE = Path("build/tidy-cache")


def main() -> None:
    commands = prepare()
    sources = [name for name in tracked(".cc") if name in commands and not name.endswith(TEST_CASES)]
    tool = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True, check=True).stdout
    common = tool + text_of(".clang-tidy")
    CACHE.mkdir(parents=True, exist_ok=True)

    def key_of(source: str) -> str:
        digest = hashlib.sha256((common + "\0".join(commands[source])).encode())
        for name in sorted(project_includes(source)):
            digest.update(f"\0{name}\0{text_of(name)}".encode())
        return digest.hexdigest()

    def tidy(source: str) -> list[str]:
        clean = CACHE / key_of(source)
        if clean.exists():
            clean.touch()  # its age says when it was last needed
            return []
        arguments = ["clang-tidy", "-p", str(BUILD), "--quiet", "--warnings-as-errors=*", source]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            clean.touch()
            return []
        return [ran.stdout.strip() or ran.stderr.strip()]

    finish(in_parallel(tidy, sources))


if __name__ == "__main__":
    main()
