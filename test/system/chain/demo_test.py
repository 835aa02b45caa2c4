"""scripts/demo, behind its build: a newcomer sees that the answers are the same, and nothing is left running."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

PROGRAMS = os.environ.get("KVFERRY_PROGRAMS", "build/release/bin")
COMMAND = [sys.executable, "-m", "chain.demo", "--programs", PROGRAMS]


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


class Demo(unittest.TestCase):
    def run_once(self, *flags: str) -> str:
        done = subprocess.run([*COMMAND, "--once", *flags], capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        self.assertIn("8 of 8 answers are the same", done.stdout)
        self.assertIn("left    0 blocks pinned", done.stdout)
        self.assertNotIn("\x1b", done.stdout, "colours only on a terminal")
        return done.stdout

    def test_shows_what_moved_on_the_same_host(self) -> None:
        self.assertRegex(self.run_once(), r"moved +[\d.]+ MB of KV in \d+ fetches over local")

    def test_moves_by_tcp_between_different_tensor_parallel_sizes(self) -> None:
        self.assertRegex(self.run_once("--fabric", "tcp", "--tp", "2:1"), r"fetches over tcp")

    def test_survives_a_prefiller_that_is_killed(self) -> None:
        self.run_once("--kill-prefiller")

    def test_says_which_port_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = subprocess.run(
                [*COMMAND, "--once", "--port", str(port)], capture_output=True, text=True, check=False
            )
        self.assertEqual(1, done.returncode)
        self.assertIn(f"port {port} is taken", done.stderr)

    def test_ctrl_c_ends_everything_that_it_started(self) -> None:
        with tempfile.TemporaryFile("w+") as out, subprocess.Popen(COMMAND, stdout=out, stderr=out) as demo:
            end = time.monotonic() + 120
            text = ""
            while "Ctrl-C ends it" not in text:
                self.assertLess(time.monotonic(), end, text)
                self.assertIsNone(demo.poll(), text)
                time.sleep(0.05)  # pause of a wait
                out.seek(0)
                text = out.read()
            self.assertIn("curl http://127.0.0.1:", text)
            servers = children_of(demo.pid)
            self.assertEqual(6, len(servers))
            demo.send_signal(signal.SIGINT)
            self.assertEqual(0, demo.wait(90))
            self.assertEqual([], [pid for pid in servers if Path(f"/proc/{pid}").exists()])


if __name__ == "__main__":
    unittest.main()
