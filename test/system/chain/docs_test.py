"""Every command of the docs that says `runnable` runs, against a chain; no other command hides there.

A block of commands begins with ```sh runnable (run here) or ```sh in-ci (scripts that CI runs by themselves; here only
their --help is asked, which must know the flags in use).
"""

import os
import re
import subprocess
import unittest
from pathlib import Path
from urllib.parse import urlsplit

from fixture import PROGRAMS, ChainTest

PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\b *(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    """Page and commands of each block of this kind."""
    found = [(page, block) for page in PAGES for block in BLOCK.finditer(page.read_text())]
    return [(str(page), block.group(2)) for page, block in found if block.group(1) == kind]


class Docs(ChainTest):
    def here(self, commands: str) -> str:
        """The commands with the addresses of this test's chain instead of the usual ones."""
        places = {
            "http://127.0.0.1:8000": self.proxy,
            "http://127.0.0.1:8009": f"http://127.0.0.1:{self.chain.admin_port}",
            "http://127.0.0.1:8998": self.bootstrap,
            "build/release/bin": str(PROGRAMS),
        }
        for usual, place in places.items():
            commands = commands.replace(usual, place)
        return commands

    def test_every_block_says_how_it_is_run(self) -> None:
        for page in PAGES:
            for found in BLOCK.finditer(page.read_text()):
                self.assertIn(found.group(1), ("runnable", "in-ci"), f"{page}: {found.group(2)}")

    def test_runnable_commands_succeed(self) -> None:
        found = blocks("runnable")
        self.assertGreater(len(found), 4)
        for page, commands in found:
            with self.subTest(page=page, commands=commands):
                script = "set -euo pipefail\n" + self.here(commands)
                done = subprocess.run(
                    ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env={**os.environ}
                )
                self.assertEqual(0, done.returncode, done.stdout + done.stderr)
                self.assertNotEqual("", done.stdout)

    def test_scripts_that_ci_runs_know_their_flags(self) -> None:
        found = blocks("in-ci")
        self.assertGreater(len(found), 0)
        for page, commands in found:
            for line in commands.splitlines():
                words = line.split("#")[0].split()
                if not words:
                    continue
                with self.subTest(page=page, line=line):
                    told = subprocess.run([words[0], "--help"], capture_output=True, text=True, timeout=30, check=True)
                    for word in words[1:]:
                        if word.startswith("-"):
                            self.assertIn(word, told.stdout)

    def test_the_usual_ports_are_told(self) -> None:
        told = Path("docs/operating.md").read_text()
        for url in re.findall(r"http://127\.0\.0\.1:\d+", "".join(commands for _, commands in blocks("runnable"))):
            self.assertIn(f"| {urlsplit(url).port}", told)


if __name__ == "__main__":
    unittest.main()
