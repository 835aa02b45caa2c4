"""scripts/demo, behind the build: starts a chain, shows that its answers are those of one server, and stays up."""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from chain.client import Answer, Json, ask
from chain.metrics import Page
from chain.ports import Ports, is_free
from chain.processes import Server, StartError
from chain.servers import Chain, Shape, metrics_of
from chain.show import Show

PORT, ADMIN_PORT, FIRST_PORT, BOOTSTRAP_PORT = 8000, 8009, 8100, 8998
DOWN_S = 1.0  # a killed prefiller, until it is started again
STORY = (
    "The ferry leaves the northern shore at dawn and carries the letters, the bread and the keys of the harbour to the "
    "island; whoever reads this sentence twice has crossed the water once. "
)


@dataclass
class Question:
    name: str
    path: str
    body: Json


def questions() -> list[Question]:
    """Prompts of all sizes, streamed and not, greedy and drawn from a seed."""
    common: Json = {"max_tokens": 24, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    asked = []
    for number, sentences in enumerate((1, 2, 3, 4, 5, 6)):
        prompt = f"Crossing {number}. " + STORY * sentences
        body = {**common, "prompt": prompt, "logprobs": 1, "stream": number % 2 == 0}
        asked.append(Question(f"completion, {len(prompt)} tokens", "/v1/completions", body))
    for number, sentences in enumerate((2, 4)):
        message = {"role": "user", "content": f"Harbour {number}. " + STORY * sentences}
        body = {**common, "messages": [message], "logprobs": True, "top_logprobs": 1, "stream": number == 0}
        body |= {"temperature": 0.8, "top_p": 0.9, "seed": 7 + number}
        asked.append(Question("chat, drawn from a seed", "/v1/chat/completions", body))
    return asked


@dataclass
class Result:
    question: Question
    single: Answer
    split: Answer

    @property
    def same(self) -> bool:
        return self.single.complete and self.split.complete and self.split.same(self.single)


def pair_of(answer: Answer) -> str:
    ports = [answer.headers.get(f"x-kvferry-{leg}", "?").rsplit(":", 1)[-1] for leg in ("prefill", "decode")]
    return " -> ".join(ports)


class Demo:
    def __init__(self, options: argparse.Namespace, logs: Path, show: Show) -> None:
        self.options = options
        self.show = show
        prefill_tp, decode_tp = options.tp
        port = self.choose_port(options.port, PORT)
        shape = Shape(
            prefill_tp=[prefill_tp] * 2,
            decode_tp=[decode_tp] * 2,
            fabrics=options.fabric,
            decode=["--kv-load-failure-policy", "recompute"] if options.kill_prefiller else [],
            proxy=["--health-interval", "200ms", "--slow-start", "0", "--policy", "round_robin"],
        )
        self.chain = Chain(
            programs=options.programs,
            logs=logs,
            shape=shape,
            proxy_port=port,
            admin_port=self.choose_port(None, ADMIN_PORT),
            ports=Ports(FIRST_PORT),
            bootstrap_ports=Ports(BOOTSTRAP_PORT),
        )

    def choose_port(self, asked: int | None, usual: int) -> int:
        port = asked or usual
        if is_free(port):
            return port
        if asked:
            raise StartError(f"port {asked} is taken; `ss -ltnp 'sport = :{asked}'` names its holder")
        free = Ports(usual + 1).take()
        self.show.note(f"port {usual} is taken, using {free}")
        return free

    async def start(self) -> None:
        began = time.monotonic()
        servers = self.chain.servers()
        self.show.step(f"start   {len(servers)} processes: " + ", ".join(server.name for server in servers))
        await self.chain.start()
        self.show.step(f"ready   after {time.monotonic() - began:.1f} s; their logs are in {self.chain.logs}")

    async def compare(self) -> list[Result]:
        """Asks the single server and the chain the same."""
        asked = questions()
        if self.options.kill_prefiller:
            asked = [replace(one, body={**one.body, "max_tokens": 96}) for one in asked]
        assert self.chain.single is not None
        assert self.chain.proxy is not None
        singles = [await ask(self.chain.single.url, one.path, one.body) for one in asked]
        self.show.step(f"request {len(asked)} questions to one server, then to the chain")
        if not self.options.kill_prefiller:
            splits = [await ask(self.chain.proxy.url, one.path, one.body) for one in asked]
        else:
            splits = await self.ask_while_killing(asked)
        return [Result(*three) for three in zip(asked, singles, splits, strict=True)]

    async def ask_while_killing(self, asked: list[Question]) -> list[Answer]:
        """All at once, and a prefiller dies as soon as it has KV that was asked for."""
        victim = self.chain.prefillers[0]
        assert self.chain.proxy is not None
        running = [asyncio.create_task(ask(self.chain.proxy.url, one.path, one.body)) for one in asked]
        while (await metrics_of(victim)).total("kvferry_sim_parcels_published_total") < 1:
            await asyncio.sleep(0.002)  # pause of a wait
        victim.kill()
        self.show.note(f"{victim.name} was killed with requests under way")
        await asyncio.wait(running, timeout=DOWN_S)
        victim.start()
        await victim.ready()
        self.show.note(f"{victim.name} is back, as a new instance that the chain finds by itself")
        return list(await asyncio.gather(*running))

    async def settled(self) -> list[Page]:
        """The servers' metrics once nothing is pinned any more."""
        end = time.monotonic() + 60
        while True:
            servers = [*self.chain.prefillers, *self.chain.decoders]
            pages = [await metrics_of(server) for server in servers]
            if all(page.total("kvferry_sim_blocks", state="used") == 0 for page in pages):
                return pages
            if time.monotonic() > end:
                return pages
            await asyncio.sleep(0.02)  # pause of a wait

    def tell(self, results: list[Result], pages: list[Page]) -> bool:
        rows = [
            [
                result.question.name,
                pair_of(result.split),
                f"{result.split.first_s * 1e3:.0f} ms",
                f"{result.single.first_s * 1e3:.0f} ms",
                f"{len(result.split.tokens)} tokens" if result.same else result.split.error or "DIFFERENT",
                self.show.verdict(result.same, "same" if result.same else "no"),
            ]
            for result in results
        ]
        self.show.table(["question", "prefill -> decode", "first token", "one server", "answer", "compared"], rows)
        pinned = sum(page.total("kvferry_sim_blocks", state="used") for page in pages)
        self.tell_moved(pages)
        self.show.line(f"left    {pinned:.0f} blocks pinned, on all servers together")
        same = sum(result.same for result in results)
        verdict = (
            f"{same} of {len(results)} answers are the same, token by token and log-probability by log-probability"
        )
        self.show.line(self.show.verdict(same == len(results), verdict))
        return same == len(results) and pinned == 0

    def tell_moved(self, pages: list[Page]) -> None:
        fabrics = sorted({s.labels["fabric"] for page in pages for s in page.find("kvferry_sim_fetched_bytes_total")})
        seconds = sum(page.total("kvferry_sim_fetch_seconds_sum") for page in pages)
        moved = sum(page.total("kvferry_sim_fetched_bytes_total") for page in pages)
        fetches = sum(page.total("kvferry_sim_fetch_seconds_count") for page in pages)
        if fetches == 0:
            self.show.line("moved   nothing")
            return
        self.show.line(
            f"moved   {moved / 1e6:.1f} MB of KV in {fetches:.0f} fetches over {', '.join(fabrics)}, "
            f"{seconds / fetches * 1e3:.1f} ms each, {moved / seconds / 1e6:.0f} MB/s while fetching"
        )
        failed = sum(
            sample.value
            for page in pages
            for sample in page.find("kvferry_sim_fetches_total")
            if sample.labels["outcome"] != "ok"
        )
        if failed:
            self.show.line(f"failed  {failed:.0f} fetches, whose prompts the decoder computed itself")

    def invite(self) -> None:
        assert self.chain.proxy is not None
        body = json.dumps({"prompt": "Is there a ferry today? " * 4, "max_tokens": 32})
        self.show.line("\nTry it (the weights are random: the answer means nothing, but it hangs on every byte of KV):")
        self.show.line(f"  curl {self.chain.proxy.url}/v1/completions -H 'Content-Type: application/json' -d '{body}'")
        self.show.line(f"  curl {self.chain.proxy.url}/metrics")
        self.show.line("Ctrl-C ends it.")

    async def stay(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        watch = asyncio.create_task(self.watch(stop))
        await stop.wait()
        watch.cancel()
        self.show.line("\nending ...")

    async def watch(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            dead: list[Server] = [server for server in self.chain.servers() if not server.alive()]
            if dead:
                self.show.note(f"{dead[0].name} ended by itself:\n{dead[0].last_words()}")
                return
            await asyncio.sleep(1)

    async def run(self) -> int:
        await self.start()
        results = await self.compare()
        good = self.tell(results, await self.settled())
        if not self.options.once:
            self.invite()
            await self.stay()
        return 0 if good else 1


def parse_tp(text: str) -> tuple[int, int]:
    prefill, _, decode = text.partition(":")
    return int(prefill), int(decode or prefill)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", add_help=False)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--fabric", default="")
    parser.add_argument("--tp", type=parse_tp, default=(1, 1))
    parser.add_argument("--kill-prefiller", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--programs", type=Path, required=True, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = parse(sys.argv[1:])
    show = Show(sys.stdout)
    signal.signal(signal.SIGTERM, interrupted)
    logs = Path(tempfile.mkdtemp(prefix="kvferry-demo-"))
    demo, status = None, 1
    try:
        demo = Demo(options, logs, show)
        status = asyncio.run(demo.run())
    except StartError as error:
        show.note(str(error))
    except KeyboardInterrupt:
        status = 130
    finally:
        ends = demo.chain.stop() if demo else {}
        with contextlib.suppress(BrokenPipeError):
            bad = [name for name, end in ends.items() if end != 0]
            if bad:
                show.note(f"did not end cleanly: {', '.join(bad)}; their logs are in {logs}")
                status = status or 1
            elif status in (0, 130):
                shutil.rmtree(logs, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
