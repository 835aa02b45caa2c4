"""The faults of a chaos run: each is injected, lasts a while, and is taken back."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from chain.client import BrokenAnswerError, Manners, ask, fetch
from chain.processes import Server, StartError
from chaos.load import DEADLINE_S, Load, until, workers_of
from chaos.stage import LEASE_S, Stage

# Slow enough for a transfer to take longer than a look at it, and with short queues, so that most of a parcel is still
# the prefiller's memory while it is read.
USUAL_LINK = ("rate 6M", "queue 128K", "delay 1ms")
AIM_S = 3.0
EARLY_TRIES = 4


@dataclass
class Count:
    injected: int = 0
    middle: int = 0  # while KV was being fetched


@dataclass
class Faults:
    stage: Stage
    load: Load
    seed: int
    say: Callable[[str], None]
    counts: dict[str, Count] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.drawn = random.Random(self.seed)
        self.counts = {kind: Count() for kind in KINDS}

    def round(self) -> list[str]:
        """Every kind once, in a random order."""
        kinds = list(KINDS)
        self.drawn.shuffle(kinds)
        return kinds

    def never_landed(self) -> list[str]:
        return [kind for kind, count in self.counts.items() if count.middle == 0]

    async def inject(self, kind: str) -> None:
        self.say(f"{time.monotonic() - self.began:6.1f} s  {kind}")
        self.counts[kind].injected += 1
        await KINDS[kind](self)

    async def aim(self, kind: str) -> None:
        """Returns in the middle of a transfer, if there is one soon, and counts that."""
        end = time.monotonic() + AIM_S
        while time.monotonic() < end:
            if await self.stage.fetching() > 0:
                self.counts[kind].middle += 1
                return
            await asyncio.sleep(0.01)  # pause of a wait

    def one_of(self, servers: list[Server]) -> Server:
        return self.drawn.choice(servers)

    async def lasts(self, low: float, high: float) -> None:
        await asyncio.sleep(self.drawn.uniform(low, high))

    async def back(self, server: Server) -> None:
        server.start()
        try:
            await server.ready(60)
        except StartError as error:
            self.load.wrong.append(f"{server.name} does not come up: {error}")

    # ---- processes

    async def kill(self, kind: str, servers: list[Server]) -> None:
        victim = self.one_of(servers)
        await self.aim(kind)
        victim.kill()
        await self.lasts(0.1, 1.5)
        await self.back(victim)

    async def freeze(self, kind: str, servers: list[Server]) -> None:
        victim = self.one_of(servers)
        await self.aim(kind)
        victim.signal(signal.SIGSTOP)
        await self.lasts(0.3, 6)  # shorter and longer than heartbeats are waited for
        victim.signal(signal.SIGCONT)

    async def end_gently(self, kind: str, servers: list[Server]) -> None:
        victim = self.one_of(servers)
        await self.aim(kind)
        status = await asyncio.to_thread(victim.stop, 60)
        if status != 0:
            self.load.wrong.append(f"{victim.name} ended with {status} after SIGTERM: {victim.last_words()}")
        await self.back(victim)

    # ---- the network

    async def shape(self, kind: str, line: str, low: float, high: float) -> None:
        side = self.drawn.choice(["", " left", " right"])
        await self.aim(kind)
        self.stage.link.command(line + side)
        await self.lasts(low, high)
        self.usual_link()

    def usual_link(self) -> None:
        for line in ("heal", "loss 0", *USUAL_LINK):
            self.stage.link.command(line)

    # ---- parcels

    async def fill_table(self) -> None:
        """Prefills that nobody reads pin all blocks of a prefiller until their leases end."""
        target = self.stage.prefillers[0]
        stem = f"fill-{self.drawn.getrandbits(48):x}"

        async def pin(number: int) -> None:
            params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": f"{stem}-{number}"}
            body = {
                "prompt": f"{number} " + "x" * 1000,
                "max_tokens": 1,
                "ignore_eos": True,
                "kv_transfer_params": params,
            }
            await ask(target.url, "/v1/completions", body, Manners(LEASE_S + 2))

        pins = [asyncio.create_task(pin(number)) for number in range(12)]  # of 63 blocks each, out of 512
        await asyncio.sleep(1)
        await self.aim("full lease table")
        await asyncio.gather(*pins)

    async def expire_early(self) -> None:
        """A parcel is taken back while it is read; where its prefill or the aim fails, another one."""
        for _ in range(EARLY_TRIES):
            with contextlib.suppress(OSError, TimeoutError, BrokenAnswerError, LookupError):
                if await self.take_one_back():
                    self.counts["early expiry"].middle += 1
                    return

    async def take_one_back(self) -> bool:
        """Whether a reader had its claim, and no answer yet, when its parcel was released by force."""
        prefiller, which = self.drawn.randrange(2), self.drawn.randrange(len(self.load.prompts))
        transfer_id = f"early-{self.drawn.getrandbits(48):x}"
        base = self.stage.bootstraps[prefiller].url
        reading = asyncio.create_task(self.load.pair(prefiller, 1, which, transfer_id))  # by tcp, slowly

        async def claimed() -> bool:
            owner = (await workers_of(base))[0]["http"]
            if reading.done():
                return True
            return '"state":"claimed"' in (await fetch(f"{owner}/v1/parcels/{transfer_id}", limit_s=5))[1]

        await until(claimed, DEADLINE_S, pause_s=0.005)
        caught = not reading.done()
        try:
            status, _ = await fetch(f"{base}/v1/parcels/{transfer_id}?force=1", "DELETE", limit_s=5)
        finally:
            await reading
        return caught and status in (200, 202)


def of(servers: str) -> Callable[[Stage], list[Server]]:
    return lambda stage: getattr(stage, servers)


def process_fault(kind: str, how: str, servers: str) -> Callable[[Faults], Awaitable[None]]:
    return lambda faults: getattr(faults, how)(kind, of(servers)(faults.stage))


def link_fault(kind: str, line: str, low: float, high: float) -> Callable[[Faults], Awaitable[None]]:
    return lambda faults: faults.shape(kind, line, low, high)


KINDS: dict[str, Callable[[Faults], Awaitable[None]]] = {
    **{
        kind: process_fault(kind, how, servers)
        for kind, how, servers in (
            ("kill a prefiller", "kill", "prefillers"),
            ("kill a decoder", "kill", "decoders"),
            ("kill the proxy", "kill", "proxies"),
            ("kill a bootstrap server", "kill", "bootstraps"),
            ("stop and continue a prefiller", "freeze", "prefillers"),
            ("stop and continue a decoder", "freeze", "decoders"),
            ("restart a prefiller", "end_gently", "prefillers"),
            ("restart a decoder", "end_gently", "decoders"),
            ("restart the proxy", "end_gently", "proxies"),
        )
    },
    "lose packets": link_fault("lose packets", "loss 0.05", 1, 3),
    "delay packets": link_fault("delay packets", "delay 150ms", 1, 3),
    "cut the network": link_fault("cut the network", "cut", 0.3, 5),
    "full lease table": Faults.fill_table,
    "early expiry": Faults.expire_early,
}


async def everybody_up(faults: Faults) -> None:
    """Takes every fault back and waits until all servers are well."""
    faults.usual_link()
    for server in faults.stage.servers():
        server.signal(signal.SIGCONT)
        if not server.alive():
            faults.load.wrong.append(f"{server.name} ended by itself:\n{server.last_words()}")
            server.start()

    async def well(server: Server) -> bool:
        return (await fetch(server.url + "/health", limit_s=2))[0] == 200

    for server in faults.stage.servers():
        if not await until(lambda server=server: well(server), 90):
            faults.load.wrong.append(f"{server.name} is not well again")
