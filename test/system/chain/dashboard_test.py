"""The proxy's dashboard in a real browser: its numbers are there, also on a telephone's screen."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from fixture import ChainTest, body, until

from chain.client import Manners, ask, fetch
from chain.metrics import Page
from chain.servers import Shape

BROWSER = shutil.which("chromium")


# Says in the page's title how wide it is, how wide the screen, and the size of its smallest letters.
MEASURE = """
<script>
setInterval(() => {
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.innerText && !e.children.length);
  const sizes = texts.map((e) => parseFloat(getComputedStyle(e).fontSize));
  document.title = `${document.documentElement.scrollWidth} ${innerWidth} ${Math.min(...sizes)} ${texts.length}`;
}, 100);
</script>
"""


class Measured(BaseHTTPRequestHandler):
    """The admin server's pages, with MEASURE at the end of the dashboard."""

    origin: str

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":
            return self.send_error(404)
        with urllib.request.urlopen(self.origin + self.path, timeout=60) as answer:
            page, kind = answer.read(), answer.headers["Content-Type"]
        if self.path == "/dashboard":
            page = page.replace(b"</body>", MEASURE.encode() + b"</body>")
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@unittest.skipUnless(BROWSER, "there is no chromium")
class Dashboard(ChainTest):
    shape: ClassVar[Shape] = Shape(prefill_tp=[1, 1], decode_tp=[1, 1], proxy=["--policy", "round_robin"])

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.chain.admin_port}"

    @property
    def url(self) -> str:
        return self.admin + "/dashboard"

    def browse(self, *flags: str, url: str = "") -> str:
        """The page after two looks at the servers, as the browser has it."""
        with tempfile.TemporaryDirectory() as profile:
            command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            command += [f"--user-data-dir={profile}", "--virtual-time-budget=2500", *flags, url or self.url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        return done.stdout

    async def under_load(self, *flags: str, url: str = "") -> str:
        for number in range(4):
            await ask(self.proxy, "/v1/completions", body(cache_salt=str(number)))
        long = body(max_tokens=3000, stream=True, cache_salt="long")
        # Read slowly: they last for as long as a browser may take to start on a busy machine.
        manners = Manners(leave_after_s=600, pause_s=0.05)
        streams = [asyncio.create_task(ask(self.proxy, "/v1/completions", long, manners)) for _ in range(2)]

        async def under_way() -> bool:
            page = Page.parse(await self.page(self.proxy + "/metrics"))
            return page.total("kvferry_proxy_pair_requests") == 2

        await until(under_way)
        page = await asyncio.to_thread(lambda: self.browse(*flags, url=url))
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

    async def test_shows_what_is_pinned_and_what_went_wrong(self) -> None:
        self.assertEqual(400, (await fetch(self.proxy + "/v1/completions", "POST", b"{"))[0])
        for server in self.chain.decoders:
            server.signal(signal.SIGSTOP)
        waiting = asyncio.create_task(ask(self.proxy, "/v1/completions", body(cache_salt="pinned")))
        try:

            async def pinned() -> bool:
                return bool(json.loads(await self.page(self.admin + "/admin/parcels"))["parcels"])

            await until(pinned)
            page = await asyncio.to_thread(self.browse, "--dump-dom")
        finally:
            for server in self.chain.decoders:
                server.signal(signal.SIGCONT)
        self.assertRegex(page, r'id="pinned">1<')
        prefillers = "|".join(re.escape(server.url.removeprefix("http://")) for server in self.chain.prefillers)
        cells = rf"<td>xfer-[0-9a-f-]+</td><td>({prefillers})</td><td>127.0.0.1:\d+</td><td>[\d.]+ (ms|s)</td>"
        self.assertRegex(page, cells)
        self.assertRegex(page, r"<td>bad_request</td><td>front leg</td><td>400</td><td>-</td><td>[1-9]\d*</td>")
        self.assertTrue((await waiting).complete)

    async def test_fits_a_telephone(self) -> None:
        handler = type("Here", (Measured,), {"origin": self.admin})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/dashboard"
            page = await self.under_load("--window-size=390,1400", "--dump-dom", url=url)
            server.shutdown()
        self.assertIn('name="viewport"', page)
        told = re.search(r"<title>(\d+) (\d+) ([\d.]+) (\d+)</title>", page)
        assert told, page[:2000]
        width, screen, letters, texts = (float(number) for number in told.groups())
        self.assertLessEqual(screen, 500)
        self.assertLessEqual(width, screen, "the page scrolls sideways")
        self.assertGreaterEqual(letters, 12)
        self.assertGreater(texts, 30)

    async def test_loads_nothing_from_elsewhere(self) -> None:
        text = await self.page(self.url)
        self.assertEqual([], re.findall(r"(?:src|href)=|https?://(?!www\.w3\.org/2000/svg)\w", text))


if __name__ == "__main__":
    unittest.main()
