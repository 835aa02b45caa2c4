"""Tables that programs write into pages which people write."""

import sys
from pathlib import Path


def replace_between(page: Path, begin: str, end: str, lines: list[str]) -> None:
    """Puts the lines between two markers of the page, in the place of what is there."""
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{page} lacks its markers")
    page.write_text(before + begin + "\n" + "\n".join(lines) + end + after)
