"""Engines of this process, and of others, that the tests transfer between."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mooncake.engine import TransferEngine

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from chain.ports import own_ports

HERE = Path(__file__).parent
PORTS = own_ports()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("KVFERRY_", "MC_")):
            monkeypatch.delenv(name)


class Child:
    """The program target.py in a process of its own: a TransferEngine with registered memory that answers questions."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "target.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = json.loads(self._line())
        self.target: str = hello["target"]
        self.address: int = hello["address"]
        self.pid: int = self._process.pid

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the child has ended"
        return line

    def ask(self, question: str, **arguments: Any) -> Any:  # noqa: ANN401, whatever JSON has
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": question, **arguments}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def stop(self) -> None:
        """Returns when it no longer runs: the signal alone takes a moment."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start_child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(*arguments: str) -> Child:
        children.append(Child(*arguments))
        return children[-1]

    yield start
    for child in children:
        child.kill()


@pytest.fixture
def make_engine() -> Callable[..., TransferEngine]:
    def make(protocol: str = "tcp", metadata: str = "P2PHANDSHAKE", name: str = "127.0.0.1") -> TransferEngine:
        engine = TransferEngine()
        assert engine.initialize(name, metadata, protocol, "") == 0, engine.last_error()
        return engine

    return make
