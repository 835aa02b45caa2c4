"""Usage: plant.py CHECK

Makes a small tree with this repository's scripts, in which `scripts/lint CHECK` passes, then plants one violation after
the other, each in a fresh state, and expects the check to fail and to name the file.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (".clang-format", ".clang-tidy", "ruff.toml", "CMakePresets.json", "scripts")

CLEAN = {
    ".gitignore": "/build/\n/.venv\n",
    "CMakeLists.txt": "cmake_minimum_required(VERSION 3.25)\nproject(mini LANGUAGES CXX)\n"
    "set(CMAKE_CXX_STANDARD 20)\nset(CMAKE_EXPORT_COMPILE_COMMANDS ON)\n"
    "add_library(mini STATIC common/good.cc)\ntarget_include_directories(mini PUBLIC .)\n",
    "DESIGN.md": "# Design\n\n- **I1 No stale bytes.** See [the design](DESIGN.md#design).\n",
    "common/good.h": "#pragma once\n\n// The answer (I1, DESIGN.md).\nint answer();\n",
    "engine/types.h": "#pragma once\n",
    "engine/plan/plan.cc": '#include "engine/plan/plan.h"\n\n#include "common/good.h"\n#include "engine/types.h"\n',
    "engine/plan/plan.h": '#pragma once\n\n#include "engine/types.h"\n',
    "common/good.cc": '#include "common/good.h"\n\nint answer() {\n  return 42;\n}\n',
    "tool.py": '"""Says nothing."""\n',
    "tool": '#!/usr/bin/env bash\necho "$@"\n',
    "test/wrong.patch": "answers wrong\n--- a/common/good.cc\n+++ b/common/good.cc\n@@ -3,3 +3,3 @@\n int answer() {\n"
    "-  return 42;\n+  return 41;\n }\n",
}

LONG_FUNCTION = "int long_one() {\n" + "  // line\n" * 59 + "  return 1;\n}\n"

# For each check: a file and what is written into it; the report must name the file.
VIOLATIONS: dict[str, list[tuple[str, str]]] = {
    "format": [("common/bad.cc", "int  x( ) ;\n")],
    "budgets": [
        ("common/bad.cc", "// line\n" * 401),
        ("common/bad.h", "// line\n" * 251),
        ("test/bad_test.cc", "// line\n" * 601),
        ("common/bad_function.cc", LONG_FUNCTION),
        ("bad_function.py", "def long_one() -> None:\n" + "    # line\n" * 60 + "    print()\n"),
        ("common/a/b/c/deep.cc", "\n"),
        ("bad", "#!/bin/sh\n" + "# line\n" * 400),
        ("scripts/lint.d/exceptions.txt", "file common/good.cc 500 it was long once\n"),
        ("scripts/lint.d/exceptions.txt", "file common/good.cc 500\n"),
    ],
    "layers": [
        ("common/bad.cc", '#include "engine/engine.h"\n'),
        ("common/bad.cc", "#include <engine/engine.h>\n"),
        ("common/bad.cc", '#include "good.h"\n'),
        ("http/bad.cc", '#include "engine/engine.h"\n'),
        ("proxy/bad.cc", '#include "bootstrap/server.h"\n'),
        ("proxy/bad.cc", '#include "engine/engine.h"\n'),
        ("bootstrap/bad.cc", '#include "proxy/proxy.h"\n'),
        ("engine/plan/bad.cc", '#include "engine/session/peers.h"\n'),
        ("engine/session/bad.cc", '#include "engine/parcel/owner.h"\n'),
        ("engine/fabric/tcp/bad.cc", '#include "engine/fabric/local/copy.h"\n'),
        ("engine/types.h", '#include "engine/plan/plan.h"\n'),
        ("engine/config.h", '#include "engine/io/loop.h"\n'),
        ("engine/io/bad.cc", '#include "engine/engine.h"\n'),
        ("engine/bad.cc", '#include "test/support/process.h"\n'),
        ("elsewhere/bad.cc", "\n"),
    ],
    "invariants": [
        ("common/bad.cc", "// I2, DESIGN.md\n"),
        ("common/bad.h", "int x;  // quiet (I4)\n"),
        ("bad.md", "As I12 says.\n"),
    ],
    "getenv": [("common/bad.cc", 'const char* home = getenv("HOME");\n'), ("http/bad.cc", "extern char** environ;\n")],
    "words": [
        ("common/bad.cc", "// TO" + "DO: later\n"),
        ("bad.md", "Open /ho" + "me/somebody/kvferry.\n"),
        ("bad.md", "As in is" + "sue 12.\n"),
        ("tool", "cd ../sha" + "red\n"),
    ],
    "sleeps": [
        ("test/bad_test.cc", "std::this_thread::sleep_for(1s);\n"),
        ("test/bad_test.cc", "usleep(10);\n"),
        ("test/bad.py", "time.sleep(1)\n"),
    ],
    "links": [("bad.md", "[gone](docs/gone.md)\n"), ("bad.md", "[gone](DESIGN.md#gone)\n")],
    "patches": [
        ("test/bad.patch", CLEAN["test/wrong.patch"].replace("-  return 42", "-  return 43")),
        ("test/bad.patch", CLEAN["test/wrong.patch"].replace("good.cc", "gone.cc")),
        ("test/bad.patch", "no patch\n"),
    ],
    "python": [("bad.py", "import os\n"), ("bad.py", "print( 1 )\n"), ("bad.py", "def f(x):\n    return x\n")],
    "shell": [("bad", "#!/usr/bin/env bash\nrm $1/*\n")],
    "headers": [("common/bad.h", "#pragma once\n\nstd::string name();\n"), ("common/bad.h", "struct Unguarded {};\n")],
    "tidy": [
        ("common/good.cc", '#include "common/good.h"\n\nint answer() {\n  int sum;\n  sum = 42;\n  return sum;\n}\n'),
        ("common/good.h", "#pragma once\n\nstruct Number {\n  Number(int from);\n};\nint answer();\n"),
    ],
}


def run_check(tree: Path, check: str) -> tuple[int, str]:
    subprocess.run(["git", "add", "--all"], cwd=tree, check=True, capture_output=True)
    ran = subprocess.run(["scripts/lint", check], cwd=tree, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def make_tree(tree: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    (tree / "scripts/lint.d/exceptions.txt").write_text("# none\n")
    for name, text in CLEAN.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / ".venv").symlink_to(ROOT / ".venv")
    subprocess.run(["git", "init", "--quiet", "."], cwd=tree, check=True)


def main() -> int:
    check = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="kvferry-lint-") as folder:
        tree = Path(folder)
        make_tree(tree)
        status, output = run_check(tree, check)
        if status != 0:
            print(f"{check} fails on a clean tree:\n{output}")
            return 1
        for name, text in VIOLATIONS[check]:
            path = tree / name
            before = path.read_text() if path.exists() else None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            status, output = run_check(tree, check)
            if status == 0 or name not in output:
                print(f"{check} did not find {text[:60]!r} in {name} (status {status}):\n{output}")
                return 1
            path.unlink() if before is None else path.write_text(before)
        status, output = run_check(tree, check)
        if status != 0:
            print(f"{check} fails after the violations are gone:\n{output}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
