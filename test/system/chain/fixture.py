"""A chain of real servers for one test file, and waiting for what they come to."""

import asyncio
import os
import shutil
import tempfile
import time
import unittest
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from chain.client import Json, fetch
from chain.ports import own_ports
from chain.servers import Chain, Shape

PROGRAMS = Path(os.environ.get("KVFERRY_PROGRAMS", "build/release/bin"))
PROMPT = "The ferry leaves the northern shore at dawn and carries letters, bread and keys. " * 4


def body(prompt: str = PROMPT, **more: object) -> Json:
    """Greedy, with everything in the answer that can be compared."""
    return {
        "prompt": prompt,
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 1,
        **more,
    }


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not await condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come true in time")
        await asyncio.sleep(0.02)  # pause of a wait


class ChainTest(unittest.IsolatedAsyncioTestCase):
    """Starts `shape` for all tests of a class."""

    shape: ClassVar[Shape] = Shape(prefill_tp=[2], decode_tp=[1])
    chain: ClassVar[Chain]

    @classmethod
    def setUpClass(cls) -> None:
        cls.logs = Path(tempfile.mkdtemp(prefix="kvferry-test-"))
        ports = own_ports()
        cls.chain = Chain(PROGRAMS, cls.logs, cls.shape, ports.take(), ports.take(), ports)
        asyncio.run(cls.chain.start())

    @classmethod
    def tearDownClass(cls) -> None:
        ends = cls.chain.stop()
        if any(ends.values()):
            raise AssertionError(f"a server did not end cleanly on SIGTERM: {ends}")
        shutil.rmtree(cls.logs)

    @property
    def prefiller(self) -> str:
        return self.chain.prefillers[0].url

    @property
    def decoder(self) -> str:
        return self.chain.decoders[0].url

    @property
    def single(self) -> str:
        assert self.chain.single is not None
        return self.chain.single.url

    @property
    def proxy(self) -> str:
        assert self.chain.proxy is not None
        return self.chain.proxy.url

    @property
    def bootstrap(self) -> str:
        command = self.chain.prefillers[0].command
        return f"http://127.0.0.1:{command[command.index('--bootstrap-port') + 1]}"

    async def page(self, url: str) -> str:
        status, text = await fetch(url)
        self.assertEqual(200, status, text)
        return text
