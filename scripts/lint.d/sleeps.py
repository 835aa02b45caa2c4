"""Tests wait for a condition with a deadline; a test that sleeps is slow on one machine and flaky on another."""

import re

from tree import finish, numbered_lines, tracked

SLEEP = re.compile(r"\b(sleep_for|sleep_until|usleep|nanosleep|time\.sleep)\s*\(|(?<![\w.:])sleep\s*\(")
# The pause between two looks at a condition, said beside it: `// pause of a wait`.
ALLOWED = "pause of a wait"


def main() -> None:
    files = tracked(".cc", ".h", ".py")
    tests = [name for name in files if name.startswith("test/") and not name.startswith("test/lint/")]
    finish(
        f"{name}:{number}: a test sleeps: {line.strip()}"
        for name, number, line in numbered_lines(tests)
        if SLEEP.search(line) and ALLOWED not in line
    )


if __name__ == "__main__":
    main()
