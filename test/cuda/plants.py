#!/usr/bin/env python3
"""Usage: test/cuda/plants.py [--build DIR] PLANT ...

Plants a bug of plants/*.patch in the CUDA memory kind and runs its tests over the fake driver, which must fail: by it
one sees that the fake driver is as strict as it says. As in test/system/mutants.py, only the file that the patch
changes is compiled again, as the build at hand does it (default: build/release, which must be up to date). The last
line is `N passed, N failed`, as of the tests; the exit status 1 where one failed, and 2 where none did.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLANTS = ROOT / "test/cuda/plants"
TESTS = {"cuda_test": "*Cuda*", "conformance_test": "*Transfers.Moves*cuda*", "parcel_conformance_test": "*cuda*"}

sys.path.insert(0, str(ROOT / "test/system"))
from mutants import compile_mutant, link_mutant  # noqa: E402


def run(plant: str, build: Path) -> tuple[int, int]:
    """How many tests passed and failed; what a crash kept from running has failed."""
    patch = PLANTS / f"{plant}.patch"
    mutant = compile_mutant(patch, build, build / "plants" / plant)
    passed = failed = 0
    for test, tests in TESTS.items():
        program = link_mutant(f"test/{test}", mutant, build)
        listed = subprocess.run(
            [program, f"--gtest_filter={tests}", "--gtest_list_tests"], capture_output=True, text=True, check=True
        )
        count = sum(line.startswith("  ") for line in listed.stdout.splitlines())
        ran = subprocess.run(
            [program, f"--gtest_filter={tests}", "--gtest_brief=1"],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        found = re.search(r"\[  PASSED  \] (\d+) test", ran.stdout)
        here = int(found.group(1)) if found else 0
        passed, failed = passed + here, failed + count - here
        end = f"ended by signal {-ran.returncode}" if ran.returncode < 0 else f"exit status {ran.returncode}"
        print(f"{plant}: {test}: {here} of {count} passed, {end}", flush=True)
    return passed, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("plants", nargs="+", choices=sorted(path.stem for path in PLANTS.glob("*.patch")))
    arguments = parser.parse_args()
    results = [run(plant, arguments.build.resolve()) for plant in arguments.plants]
    print(f"{sum(passed for passed, _ in results)} passed, {sum(failed for _, failed in results)} failed")
    return 1 if all(failed for _, failed in results) else 2


if __name__ == "__main__":
    sys.exit(main())
