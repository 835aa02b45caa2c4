"""Two network namespaces with the seeded relay of test/support/link between them."""

import ctypes
import os
import subprocess
from pathlib import Path

from chain.processes import ENDS_WITH_PARENT

CLONE_NEWNET = 0x40000000
LEFT, RIGHT = "10.77.0.1", "10.77.0.2"


class Link:
    def __init__(self, program: Path, seed: int) -> None:
        self.relay = subprocess.Popen(
            [*ENDS_WITH_PARENT, program, str(seed), LEFT, RIGHT, "1500"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        word, pid, left, right = self.answer().split()
        assert word == "ready"
        self.left, self.right = (Path(f"/proc/{pid}/fd/{descriptor}") for descriptor in (left, right))

    def answer(self) -> str:
        assert self.relay.stdout is not None
        line = self.relay.stdout.readline()
        if not line.startswith(("ready ", "ok ")):
            raise RuntimeError(f"the link does not work: {line!r}")
        return line

    def command(self, line: str) -> str:
        """`loss 0.01`, `delay 5ms`, `rate 1M`, `cut`, `heal`: in force when this returns."""
        assert self.relay.stdin is not None
        self.relay.stdin.write(line + "\n")
        self.relay.stdin.flush()
        return self.answer()

    def enter_right(self) -> None:
        """This process's main thread; threads that it starts later follow."""
        descriptor = os.open(self.right, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)

    def prefix(self, side: Path) -> list[str]:
        return ["nsenter", f"--net={side}"]

    def close(self) -> None:
        self.relay.kill()
        self.relay.wait()
