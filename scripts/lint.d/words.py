"""No promises left in the tree, and nothing that only makes sense on the machine of whoever wrote it.

The patterns are written so that they do not find themselves.
"""

import re

from tree import finish, numbered_lines, tracked

PATTERNS = {
    r"\b(TO[D]O|FIX[M]E|X{3}|HA[C]K)\b": "a promise: keep it or report it",
    r"\bnot[ ]implemented yet\b|\bunimplement[e]d\b|\bplaceh[o]lder\b": "a promise: keep it or report it",
    r"(^|[^\w.$}])/(w[o]rk|f[a]rm|r[o]ot|h[o]me/\w+)/": "a path of one machine",
    r"\.\./sh[a]red\b": "a path of one machine",
    r"\b(i[s]sue|tic[k]et) #?\d+\b": "a number of a tracker that readers may not have; give the reason itself",
    r"index-u[r]l\s*=|https?://[\w.-]*(artifact[o]ry|\.intern[a]l|\.c[o]rp)\b": "a package index of one workplace",
}


def main() -> None:
    files = [name for name in tracked() if name != "LICENSE" and not name.startswith("test/fuzz/corpus/")]
    problems = []
    for name, number, line in numbered_lines(files):
        for pattern, why in PATTERNS.items():
            found = re.search(pattern, line)
            if found:
                problems.append(f'{name}:{number}: "{found.group(0).strip()}" is {why}')
    finish(problems)


if __name__ == "__main__":
    main()
