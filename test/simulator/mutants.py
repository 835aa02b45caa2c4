"""Plants each bug of mutants/*.patch in a copy of the file that it changes, and looks whether 1000 seeds find it.

Only that file is compiled again, as the build at hand compiles it; the rest is linked from there. A patch's first line
says what it breaks, its second which kind of simulation must see it.
"""

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "test/simulator/mutants").glob("*.patch"))
SEEDS = "1..1000"


def changed_file(patch: Path) -> str:
    files = [line[6:].split()[0] for line in patch.read_text().splitlines() if line.startswith("+++ b/")]
    if len(files) != 1 or not files[0].endswith(".cc"):
        raise SystemExit(f"{patch.name}: a mutant changes one .cc file")
    return files[0]


def build_mutant(patch: Path, build: Path, program: str = "bin/kvferry-simulate") -> Path:
    """The path of that program of the build folder, with the bug in it."""
    source = changed_file(patch)
    place = build / "mutants" / patch.stem
    copy = place / source
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((ROOT / source).read_bytes())
    subprocess.run(["patch", "--quiet", "-p1", "-d", place, "-i", patch], check=True)
    commands = json.loads((build / "compile_commands.json").read_text())
    entry = next(entry for entry in commands if Path(entry["file"]) == ROOT / source)
    compile_it = shlex.split(entry["command"])
    made = place / "mutant.o"
    compile_it[compile_it.index("-o") + 1] = str(made)
    compile_it[compile_it.index("-c") + 1] = str(copy)
    if shutil.which("ccache") and "ccache" not in Path(compile_it[0]).name:
        compile_it.insert(0, "ccache")  # a bug that is planted in what has not changed is compiled once
    subprocess.run(compile_it, check=True, cwd=entry["directory"])
    listed = subprocess.run(
        ["ninja", "-C", build, "-t", "commands", program], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    link = next(line for line in reversed(listed) if f" -o {program} " in line)
    mutant = place / Path(program).name
    # Before the libraries: the linker then takes nothing from the archive's member of the same file.
    link = link.replace(f" -o {program} ", f" {shlex.quote(str(made))} -o {shlex.quote(str(mutant))} ")
    subprocess.run(link, check=True, cwd=build, shell=True)
    return mutant


def judge(patch: Path, build: Path) -> tuple[bool, str]:
    """Whether the seeds find the bug, and a line about it."""
    what, kind = patch.read_text().splitlines()[:2]
    program = build_mutant(patch, build)
    run = subprocess.run(
        [program, "--kind", kind, "--seeds", SEEDS, "--lines", "1"], capture_output=True, text=True, check=False
    )
    said = (run.stdout + run.stderr).splitlines()
    found = [line for line in said if "FAILED" in line or "crashed in seed" in line]
    caught = run.returncode != 0 and bool(found)
    return caught, f"{patch.stem} ({what}): " + (found[-1] if caught else "SURVIVES")


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    with ThreadPoolExecutor(max_workers=2) as pool:
        verdicts = list(pool.map(lambda patch: judge(patch, build), PATCHES))
    for _, line in verdicts:
        print(line)
    caught = sum(found for found, _ in verdicts)
    print(f"{caught} of {len(PATCHES)} mutants found within seeds {SEEDS}")
    return 0 if PATCHES and caught == len(PATCHES) else 1


if __name__ == "__main__":
    sys.exit(main())
