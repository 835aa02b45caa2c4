"""Adds up the JUnit files that ctest and pytest wrote, for scripts/test.

Usage: junit.py FILE    prints "passed failed skipped", then one line for each failure and each skip with its reason.
A GoogleTest binary or a Python file that ctest runs whole counts as one test; cases that it skipped inside are
announced and counted as skipped besides.
"""

import re
import sys
from xml.etree import ElementTree

# "file.cc:12: Skipped", then the reason that the test gave.
REASON = re.compile(r": Skipped\n(.*)")
SKIPPED_CASE = re.compile(r"^\[  SKIPPED \] (\S+)(?: \(\d+ ms\))$", re.MULTILINE)

ALL_RAN = re.compile(r"^\[==========\] .* ran\.", re.MULTILINE)
BEGUN_CASE = re.compile(r"^\[ RUN      \] (\S+)$", re.MULTILINE)
ENDED_CASE = re.compile(r"^\[(       OK |  FAILED  |  SKIPPED )\] (\S+?),?(?: where .*)? \(\d+ ms\)$", re.MULTILINE)

# Of `unittest -v`, which exits with 0 whatever was skipped.
SKIPPED_IN_PYTHON = re.compile(r"^(\w+) \(\S+\).* \.\.\. skipped (['\"])(.*)\2$", re.MULTILINE)


def reason_of(output: str) -> str:
    found = REASON.search(output)
    return found.group(1).strip() if found and found.group(1).strip() else "no reason given"


def why_skipped(case: ElementTree.Element, output: str) -> str:
    """GoogleTest prints the reason, pytest gives it beside the test."""
    skipped = case.find("skipped")
    if REASON.search(output) or skipped is None:
        return reason_of(output)
    return skipped.get("message") or reason_of(output)


def failed_inside(output: str) -> str:
    """The failed cases of a binary, or the one that it ended in."""
    begun = BEGUN_CASE.findall(output)
    ended = ENDED_CASE.findall(output)
    names = [name for verdict, name in ended if verdict == "  FAILED  "]
    if len(begun) > len(ended) and not ALL_RAN.search(output):
        names.append(f"{begun[-1]} (not ended)")
    return "".join(f" {name}" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def skipped_inside(name: str, output: str) -> list[str]:
    """The skipped cases of a binary that passed as a whole."""
    lines = []
    end = 0
    for case in SKIPPED_CASE.finditer(output):
        lines.append(f"skipped {name} {case.group(1)}: {reason_of(output[end : case.start()])}")
        end = case.end()
    for case in SKIPPED_IN_PYTHON.finditer(output):
        lines.append(f"skipped {name} {case.group(1)}: {case.group(3)}")
    return lines


def joined(skips: list[str]) -> list[str]:
    """Many skips for one reason are one line."""
    names: dict[str, list[str]] = {}
    for line in skips:
        name, reason = line.removeprefix("skipped ").split(": ", 1)
        names.setdefault(reason, []).append(name.split("  #")[0])
    return [
        f"skipped {', '.join(those[:3])}{f' and {len(those) - 3} more' if len(those) > 3 else ''}: {reason}"
        for reason, those in names.items()
    ]


def main() -> int:
    passed, failed = 0, 0
    failures: list[str] = []
    skips: list[str] = []
    for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
        name = case.get("name", "?")
        output = case.findtext("system-out") or ""
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            failed += 1
            failures.append(f"FAILED {name}{failed_inside(output)} after {float(case.get('time', 0)):.1f} s")
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            if "Unable to find executable" in output or "Could not find executable" in output:
                failed += 1
                failures.append(f"FAILED {name}: its program was not built")
            else:
                skips.append(f"skipped {name}: {why_skipped(case, output)}")
        else:
            passed += 1
            skips += skipped_inside(name, output)
    print(passed, failed, len(skips))
    for line in failures + joined(skips):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
