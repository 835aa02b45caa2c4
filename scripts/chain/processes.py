"""Server processes that end with whoever started them."""

import asyncio
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from chain.client import BrokenAnswerError, fetch

# The kernel ends the program when whoever started it is gone, however that came.
ENDS_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]


class StartError(Exception):
    """A server that did not come up, with what it said last."""


@dataclass
class Server:
    """One program with its command line; may be started again and again."""

    name: str
    command: list[str]
    url: str
    log: Path
    prefix: list[str] = field(default_factory=list)  # nsenter and the like
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *ENDS_WITH_PARENT, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for whoever started it, who then ends it in order
            )
        self.starts += 1

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and reaped."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def stop(self, limit_s: float = 60.0) -> int:
        """SIGTERM and, where that does not end it, SIGKILL. The exit status."""
        if self.process is None:
            return 0
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-5:])

    async def ready(self, limit_s: float = 90.0) -> None:
        """Returns when /health says 200."""
        end = time.monotonic() + limit_s
        while True:
            if not self.alive():
                raise StartError(f"{self.name} ended:\n{self.last_words()}")
            try:
                status, _ = await fetch(self.url + "/health", limit_s=5)
                if status == 200:
                    return
            except (OSError, TimeoutError, BrokenAnswerError):
                pass
            if time.monotonic() > end:
                raise StartError(f"{self.name} is not ready after {limit_s:.0f} s:\n{self.last_words()}")
            await asyncio.sleep(0.05)  # pause of a wait


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
