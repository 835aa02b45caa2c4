"""Every command of the docs runs, or is held against what runs it.

A block of README.md or docs/ says by its first line what it is:
  sh runnable  is run here, against a chain
  sh in-ci     commands that other tests run; their --help must know the flags in use
  sh proxy     command lines of the proxy: each starts here, with its ports moved
  sh vllm      needs vLLM, which scripts/test_vllm has: its settings must be those that test/vllm gives its servers
  text, python, cpp, yaml  hold no command
Commands within a sentence must exist, and know the flags, stages and checks that they are given.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from fixture import PROGRAMS, ChainTest

PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*) *(\S*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMANDS, OTHERS = ("runnable", "in-ci", "proxy", "vllm"), ("text", "python", "cpp", "yaml")
INLINE = re.compile(r"`((?:scripts/\w+|\.ci/run|kvferry-[a-z]+|test/[\w/]+\.py)(?: [^`]*)?)`")


def blocks(kind: str) -> list[tuple[str, str]]:
    """Page and text of each block of commands of this kind."""
    found = [(page, block) for page in PAGES for block in BLOCK.finditer(page.read_text())]
    return [(str(page), block.group(3)) for page, block in found if block.group(2) == kind]


def command_lines(text: str) -> list[list[str]]:
    """The words of each command; comments and line breaks within a command are taken out."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words]


def program(word: str) -> str:
    return str(PROGRAMS / word) if word.startswith("kvferry-") else word


@cache
def help_of(word: str) -> str:
    """What the program itself says of its flags; of a test program, its text."""
    if word.endswith(".py"):
        return Path(word).read_text()
    told = subprocess.run([program(word), "--help"], capture_output=True, text=True, timeout=120, check=True)
    return told.stdout


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

    def test_every_block_says_what_it_is(self) -> None:
        for page in PAGES:
            fences = page.read_text().count("\n```") + page.read_text().count("\n   ```")
            found = list(BLOCK.finditer(page.read_text()))
            self.assertEqual(fences, 2 * len(found), f"{page}: a block that is not understood")
            for block in found:
                language, kind, text = block.groups()
                said = kind in COMMANDS if language == "sh" else language in OTHERS
                self.assertTrue(said, f"{page}: {language} {kind}\n{text}")

    def test_runnable_commands_succeed(self) -> None:
        found = blocks("runnable")
        self.assertGreater(len(found), 4)
        for page, commands in found:
            with self.subTest(page=page, commands=commands):
                script = "set -euo pipefail\n" + self.here(commands)
                done = subprocess.run(
                    ["bash", "-c", script], capture_output=True, text=True, timeout=180, check=False, env={**os.environ}
                )
                self.assertEqual(0, done.returncode, done.stdout + done.stderr)
                self.assertNotEqual("", done.stdout)

    def test_programs_tell_all_of_their_flags(self) -> None:
        for name, last in (("proxy", "--log-level"), ("bootstrap", "--log-level"), ("sim", "--log-level")):
            self.assertIn(last, help_of(f"kvferry-{name}"))

    def knows(self, words: list[str]) -> None:
        """The program's help has the flags in use."""
        for word in words[1:]:
            if word.startswith("--"):
                self.assertRegex(help_of(words[0]), re.escape(word.split("=")[0]) + r"\b", words)

    def test_commands_that_other_tests_run_know_their_flags(self) -> None:
        found = blocks("in-ci")
        self.assertGreater(len(found), 1)
        for page, commands in found:
            for words in command_lines(commands):
                with self.subTest(page=page, words=words):
                    self.assertNotEqual("", help_of(words[0]))
                    self.knows(words)

    def test_command_lines_of_the_proxy_start_it(self) -> None:
        found = [(page, commands) for kind in ("proxy", "vllm") for page, commands in blocks(kind)]
        started = 0
        for page, commands in found:
            for words in command_lines(commands):
                if words[0] == "kvferry-proxy":
                    with self.subTest(page=page, words=words):
                        self.starts(words)
                        started += 1
        self.assertGreater(started, 3)

    def starts(self, words: list[str]) -> None:
        """With the config file that docs/proxy.md shows, and on ports that are free."""
        (shown,) = (
            found.group(3) for found in BLOCK.finditer(Path("docs/proxy.md").read_text()) if found.group(1) == "yaml"
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "proxy.yaml").write_text(shown)
            command = [str(PROGRAMS.resolve() / words[0]), *words[1:], "--port", "0", "--admin-port", "-1"]
            with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as proxy:
                assert proxy.stderr is not None
                said = proxy.stderr.readline()
                proxy.terminate()
                said += proxy.stderr.read()
        self.assertRegex(said, r"listening on \S+, [1-9]\d* prefillers, [1-9]\d* decoders")

    def test_settings_for_vllm_are_those_that_its_tests_give(self) -> None:
        servers = Path("test/vllm/servers.py").read_text()
        found = blocks("vllm")
        self.assertGreater(len(found), 1)
        for page, commands in found:
            roles = set()
            for words in command_lines(commands):
                self.assertIn(
                    words[0].rpartition("=")[0] or words[0],
                    ("pip", "vllm", "kvferry-proxy", "VLLM_MOONCAKE_BOOTSTRAP_PORT"),
                )
                self.assertTrue(all(Path(word).exists() for word in words if word.startswith("./bindings")), page)
                if "--kv-transfer-config" not in words:
                    continue
                told = json.loads(words[words.index("--kv-transfer-config") + 1])
                roles.add(told.pop("kv_role"))
                for name, value in told.items():
                    self.assertIn(f'"{name}": "{value}"', servers, f"{page}: {words}")
            self.assertEqual({"kv_producer", "kv_consumer"}, roles)

    def test_commands_within_sentences_exist(self) -> None:
        seen = 0
        for page in PAGES:
            for text in INLINE.findall(page.read_text()):
                if text.startswith("kvferry-") and not (PROGRAMS / text.split()[0]).exists():
                    self.assertNotIn(" ", text, "a program that is not built here")
                    continue
                words = re.sub(r"[\[\]|\\]", " ", text.split("&&")[0]).split()
                with self.subTest(page=str(page), command=text):
                    seen += 1
                    self.assertTrue(shutil.which(program(words[0])) or (len(words) == 1 and Path(words[0]).exists()))
                    self.knows(words)
                    if words[0] in ("scripts/test", "scripts/lint"):
                        for word in words[1:]:
                            self.assertRegex(help_of(words[0]), rf"\b{word.lstrip('-')}\b")
        self.assertGreater(seen, 30)

    def test_the_usual_ports_are_told(self) -> None:
        told = Path("docs/operating.md").read_text()
        for url in re.findall(r"http://127\.0\.0\.1:\d+", "".join(commands for _, commands in blocks("runnable"))):
            self.assertIn(f"| {urlsplit(url).port}", told)


if __name__ == "__main__":
    unittest.main()
