"""Prints which share of the lines of the simulated folders ran, from the counters of a gcov build."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine/session", "engine/run", "engine/parcel", "engine/fabric/tcp")
GOAL = 80.0  # per cent


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    counters = sorted(str(path) for path in (build / "engine").rglob("*.gcda"))
    said = subprocess.run(["gcov", "-n", *counters], check=True, capture_output=True, text=True, cwd=build).stdout
    lines: dict[str, tuple[int, int]] = {}
    for name, share, count in re.findall(r"File '([^']+)'\nLines executed:([\d.]+)% of (\d+)", said):
        path = (build / name).resolve()  # relative to where it was compiled, if ccache made it so
        if path.suffix != ".cc" or ROOT not in path.parents:
            continue
        ran = round(float(share) * int(count) / 100)
        lines[str(path.relative_to(ROOT))] = (ran, int(count))
    total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, (ran, count) in sorted(lines.items()):
        folder = next((folder for folder in FOLDERS if name.startswith(folder + "/")), None)
        if folder is None:
            continue
        print(f"  {100 * ran / count:5.1f} % of {count:4d}  {name}")
        for key in (folder, "all"):
            total[key][0] += ran
            total[key][1] += count
    if not total:
        print("no counters of these folders: has anything run?")
    for key, (ran, count) in total.items():
        print(f"{100 * ran / count:5.1f} % of {count} lines: {key}")
    return 0 if total and 100 * total["all"][0] / total["all"][1] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
