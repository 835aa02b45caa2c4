"""The proxy's dashboard in a real browser: its numbers are there, also on a telephone's screen."""

import asyncio
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import ClassVar

from fixture import ChainTest, body

from chain.client import Manners, ask
from chain.metrics import Page
from chain.servers import Shape

BROWSER = shutil.which("chromium")


@unittest.skipUnless(BROWSER, "there is no chromium")
class Dashboard(ChainTest):
    shape: ClassVar[Shape] = Shape(prefill_tp=[1, 1], decode_tp=[1, 1], proxy=["--policy", "round_robin"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.chain.admin_port}/dashboard"

    def browse(self, *flags: str) -> str:
        """The page after two looks at the servers, as the browser has it."""
        with tempfile.TemporaryDirectory() as profile:
            command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [f"--user-data-dir={profile}", "--virtual-time-budget=2500", *flags, self.url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    async def under_load(self, *flags: str) -> str:
        for number in range(4):
            await ask(self.proxy, "/v1/completions", body(cache_salt=str(number)))
        long = body(max_tokens=3000, stream=True, cache_salt="long")
        streams = [asyncio.create_task(ask(self.proxy, "/v1/completions", long, Manners(40))) for _ in range(2)]
        page = await asyncio.to_thread(self.browse, *flags)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        return page

    async def test_shows_pairs_streams_and_what_moved(self) -> None:
        page = await self.under_load("--dump-dom")
        self.assertRegex(page, r'id="streams">2<')
        pairs = Page.parse(await self.page(self.proxy + "/metrics")).total("kvferry_proxy_pairs_total")
        self.assertGreaterEqual(pairs, 6)
        self.assertIn(f'id="handed">{pairs:.0f}<', page)
        self.assertRegex(page, r"4 of 4 backends usable")
        for server in [*self.chain.prefillers, *self.chain.decoders]:
            self.assertIn(server.url.removeprefix("http://"), page)
        self.assertRegex(page, r"[\d.]+ [kM]B in all by local")
        self.assertGreaterEqual(page.count("<polyline"), 6)

    async def test_fits_a_telephone(self) -> None:
        picture = Path(self.logs) / "phone.png"
        page = await self.under_load("--window-size=390,1400", "--dump-dom", f"--screenshot={picture}")
        self.assertIn('name="viewport"', page)

    async def test_loads_nothing_from_elsewhere(self) -> None:
        text = await self.page(self.url)
        self.assertEqual([], re.findall(r"(?:src|href)=|https?://(?!www\.w3\.org/2000/svg)\w", text))


if __name__ == "__main__":
    unittest.main()
