"""Plants each bug of mutants/*.patch in kvferry-sim and looks whether a chaos run finds it. By hand: some minutes each.

Usage: PYTHONPATH=scripts:test/simulator:test/system python3 -m chaos.mutants build/release
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from mutants import ROOT, build_mutant

PATCHES = sorted((ROOT / "test/system/chaos/mutants").glob("*.patch"))
FOUND = "is not the single server's"


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    survivors = 0
    for patch in PATCHES:
        mutant = build_mutant(patch, build, "bin/kvferry-sim")
        with tempfile.TemporaryDirectory() as folder:
            programs = Path(folder)
            (programs / "kvferry-sim").symlink_to(mutant)
            for name in ("kvferry-proxy", "kvferry-bootstrap"):
                (programs / name).symlink_to(build / "bin" / name)
            command = [sys.executable, "-m", "chaos.main", "--programs", folder, "--link", build / "test/kvf-link"]
            run = subprocess.run([*command, "--minutes", "3"], capture_output=True, text=True, check=False)
        survives = run.returncode == 0 or FOUND not in run.stdout
        survivors += survives
        print(f"{patch.stem}: {'SURVIVES' if survives else 'found'}", flush=True)
        if survives:
            print(run.stdout + run.stderr, flush=True)
    return 1 if survivors or not PATCHES else 0


if __name__ == "__main__":
    sys.exit(main())
