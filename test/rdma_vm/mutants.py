"""Plants each bug of mutants/*.patch in rdma_device_test, and looks whether the guest's device shows it.

Usage: mutants.py BUILD. A patch's first line says what it breaks, its second which test must fail.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test/simulator"))
from mutants import build_mutant  # noqa: E402

PATCHES = sorted((ROOT / "test/rdma_vm/mutants").glob("*.patch"))
NO_GUEST = 77


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    survivors = 0
    for patch in PATCHES:
        what, test = patch.read_text().splitlines()[:2]
        mutant = build_mutant(patch, build, "test/rdma_device_test")
        with tempfile.TemporaryDirectory(dir=build) as folder:
            place = Path(folder)
            for file, where in ((mutant, "test"), (build / "lib/libkvferry_fabric_ucx.so", "lib")):
                (place / where).mkdir()
                shutil.copy(file, place / where)
            shutil.copy(build / "test/kvf-test-target", place / "test")
            command = [ROOT / "test/rdma_vm/run", "device", place, test]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode == NO_GUEST:
            print(run.stdout, end="")
            return NO_GUEST
        found = f"[  FAILED  ] {test}" in run.stdout
        survivors += not found
        print(f"{patch.stem} ({what}): {'found' if found else 'SURVIVES'}")
        if not found:
            print(run.stdout + run.stderr)
    return 1 if survivors or not PATCHES else 0


if __name__ == "__main__":
    sys.exit(main())
