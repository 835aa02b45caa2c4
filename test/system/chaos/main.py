"""scripts/chaos, behind the build: a seeded schedule of faults, clients all the while, and a look at what is left."""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos.faults import Faults, everybody_up
from chaos.link import Link
from chaos.load import Load, until
from chaos.stage import LEASE_S, PATIENCE_S, Stage, growth, leftovers, why_not

CLIENTS = 40
MORE_TRIES = 3
AT_REST_S = 30 + LEASE_S + PATIENCE_S  # for leases, releases and their repetitions to come to an end


def interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


class Run:
    def __init__(self, options: argparse.Namespace, stage: Stage) -> None:
        self.options = options
        self.stage = stage
        self.load = Load(stage, options.seed)
        self.faults = Faults(stage, self.load, options.seed, self.say)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    async def start(self) -> None:
        self.stage.single.start()
        await self.stage.single.ready()
        await self.load.learn()
        self.stage.single.stop()
        for server in self.stage.servers():
            server.start()
        await asyncio.gather(*(server.ready() for server in self.stage.servers()))
        self.faults.usual_link()

    async def rest(self) -> None:
        """A calm period: nobody asks, and everything must go back to where it began."""
        await everybody_up(self.faults)
        self.load.going.clear()
        self.load.calm.set()

        async def nobody_asks() -> bool:
            return self.load.busy == 0

        if not await until(nobody_asks, 90):
            self.load.wrong.append(f"{self.load.busy} requests do not end in a calm period")
        await asyncio.gather(*(self.look(server) for server in self.stage.servers()))
        self.load.calm.clear()
        self.load.going.set()

    async def look(self, server: object) -> None:
        left: list[str] = []

        async def at_rest() -> bool:
            left[:] = await leftovers(server)  # type: ignore[arg-type]
            return not left

        if not await until(at_rest, AT_REST_S):
            self.load.wrong.append(f"after a calm period: {', '.join(left) or 'no answer'}")
        self.load.wrong.extend(growth(self.stage, server))  # type: ignore[arg-type]

    async def run(self) -> int:
        await self.start()
        await self.rest()
        clients = [asyncio.create_task(self.load.client(number)) for number in range(CLIENTS)]
        end = time.monotonic() + self.options.minutes * 60
        try:
            while time.monotonic() < end and not self.load.wrong:
                for kind in self.faults.round():
                    await self.faults.inject(kind)
                    if time.monotonic() >= end or self.load.wrong:
                        break
                await self.rest()
            await self.make_up()
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        return self.report()

    async def make_up(self) -> None:
        """On a busy machine a kind may have missed every transfer so far, or its turn: it gets some more tries."""
        for kind in self.faults.never_landed() * MORE_TRIES:
            if kind in self.faults.never_landed() and not self.load.wrong:
                await self.faults.inject(kind)
        await self.rest()

    def report(self) -> int:
        counts = self.faults.counts
        never = self.faults.never_landed()
        wrong = list(self.load.wrong)
        if not wrong:
            wrong += [f'"{kind}" never landed in the middle of a transfer' for kind in never]
        if self.load.ends["complete"] == 0:
            wrong.append("no request was answered")
        result = {
            "seed": self.options.seed,
            "minutes": self.options.minutes,
            "requests": dict(self.load.ends),
            "longest_s": round(self.load.longest_s, 1),
            "faults": {kind: {"injected": one.injected, "middle": one.middle} for kind, one in counts.items()},
            "wrong": wrong,
        }
        if self.options.json:
            print(json.dumps(result, indent=1))
        else:
            self.tell(result)
        return 1 if wrong else 0

    def tell(self, result: dict[str, object]) -> None:
        for kind, count in self.faults.counts.items():
            print(f"{kind:32} {count.injected:3} times, {count.middle:3} in the middle of a transfer")
        for end, number in self.load.ends.most_common():
            print(f"{number:6} requests: {end}")
        print(f"longest request {result['longest_s']} s, seed {self.options.seed}")
        for line in result["wrong"]:  # type: ignore[attr-defined]
            print(f"WRONG: {line}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", add_help=False)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--link", type=Path, required=True)
    options = parser.parse_args()
    if reason := why_not():
        print(f"skipped: {reason}", file=sys.stderr)
        return 77
    signal.signal(signal.SIGTERM, interrupted)
    logs = Path(tempfile.mkdtemp(prefix="kvferry-chaos-"))
    link = Link(options.link.resolve(), options.seed)
    link.enter_right()
    stage = Stage(options.programs.resolve(), logs, link)
    status = 1
    try:
        status = asyncio.run(Run(options, stage).run())
    finally:
        stage.stop()
        link.close()
        if status == 0:
            shutil.rmtree(logs, ignore_errors=True)
        else:
            print(f"logs: {logs}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
