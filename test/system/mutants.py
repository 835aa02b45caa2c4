#!/usr/bin/env python3
"""Usage: test/system/mutants.py [build] [name ...]

Plants each bug of mutants/*.patch in a copy of the file that it changes, and looks whether the system test that must
find it does. Only that file is compiled again, as the build at hand (default: build/release, which must be up to date)
compiles it; the test and kvf-test-target are linked anew with it. A patch's first line says what it breaks, its second
which test binary must see it, and by which --gtest_filter. Exit status 1 when a mutant survives.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "test/system/mutants").glob("*.patch"))
TARGET = "test/kvf-test-target"


def compile_mutant(patch: Path, build: Path, place: Path) -> Path:
    """The object of the one .cc file that the patch changes."""
    changed = [line[6:].split()[0] for line in patch.read_text().splitlines() if line.startswith("+++ b/")]
    if len(changed) != 1 or not changed[0].endswith(".cc"):
        raise SystemExit(f"{patch.name}: a mutant changes one .cc file")
    copy = place / changed[0]
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((ROOT / changed[0]).read_bytes())
    subprocess.run(["patch", "--quiet", "-p1", "-d", place, "-i", patch], check=True)
    commands = json.loads((build / "compile_commands.json").read_text())
    entry = next(entry for entry in commands if Path(entry["file"]) == ROOT / changed[0])
    words = shlex.split(entry["command"])
    made = place / "mutant.o"
    words[words.index("-o") + 1] = str(made)
    words[words.index("-c") + 1] = str(copy)
    subprocess.run(words, check=True, cwd=entry["directory"])
    return made


def link_mutant(program: str, mutant: Path, build: Path) -> Path:
    """The program with the mutant before the libraries, whose member of the same file then stays out."""
    asked = ["ninja", "-C", build, "-t", "commands", program]
    listed = subprocess.run(asked, check=True, capture_output=True, text=True)
    output = f" -o {program} "
    line = next(line for line in reversed(listed.stdout.splitlines()) if output in line)
    made = mutant.parent / Path(program).name
    line = line.split(" && cd ")[0].replace(output, f" {shlex.quote(str(mutant))} -o {shlex.quote(str(made))} ")
    subprocess.run(line, check=True, cwd=build, shell=True)
    return made


def survives(patch: Path, build: Path) -> bool:
    what, where = patch.read_text().splitlines()[:2]
    test, tests = where.split()
    place = build / "mutants" / patch.stem
    mutant = compile_mutant(patch, build, place)
    target = link_mutant(TARGET, mutant, build)
    program = link_mutant(f"test/{test}", mutant, build)
    environment = dict(os.environ, KVFERRY_TEST_TARGET=str(target))
    run = subprocess.run(
        [program, f"--gtest_filter={tests}", "--gtest_brief=1"],
        capture_output=True, text=True, check=False, env=environment, timeout=600,
    )  # fmt: skip
    if "Running 0 tests" in run.stdout:
        raise SystemExit(f"{patch.name}: {test} has no test {tests}")
    failed = [line for line in run.stdout.splitlines() if line.startswith("[  FAILED  ]")]
    print(f"{patch.stem} ({what}): " + (failed[0] if failed else f"SURVIVES, exit status {run.returncode}"), flush=True)
    return not failed


def main() -> int:
    build = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/release").resolve()
    chosen = [patch for patch in PATCHES if len(sys.argv) < 3 or patch.stem in sys.argv[2:]]
    survivors = sum(survives(patch, build) for patch in chosen)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants found")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
