"""The clients of a chaos run, and what the right answer to each of their prompts is."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from chain.client import Answer, BrokenAnswerError, Json, Manners, ask, fetch
from chaos.stage import Stage

PROMPTS = 16
DEADLINE_S = 45.0  # of a request, whatever happens: the longest of the servers' own, and something for a busy machine
LETTERS = "abcdefghijklmnopqrstuvwxyz     ,."


@dataclass
class Load:
    """Random requests of many clients; `wrong` says what must not have happened."""

    stage: Stage
    seed: int
    prompts: list[Json] = field(default_factory=list)
    right: list[Answer] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    calm: asyncio.Event = field(default_factory=asyncio.Event)  # clients wait while it is set
    going: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0

    async def learn(self) -> None:
        """Asks the one server for all answers."""
        drawn = random.Random(self.seed)
        for number in range(PROMPTS):
            text = "".join(drawn.choice(LETTERS) for _ in range(drawn.randrange(150, 700)))
            body: Json = {"prompt": text, "max_tokens": drawn.randrange(8, 25), "ignore_eos": True, "logprobs": 1}
            body |= {"return_token_ids": True, "temperature": 0.7 * (number % 2), "seed": number}
            self.prompts.append(body)
            answer = await ask(self.stage.single.url, "/v1/completions", body)
            assert answer.complete, answer
            self.right.append(answer)

    def judge(self, number: int, answer: Answer, who: str) -> None:
        """A complete answer is the one server's; anything else says honestly that it is none."""
        self.longest_s = max(self.longest_s, answer.total_s)
        if answer.complete:
            self.ends["complete"] += 1
            if not answer.same(self.right[number]):
                self.wrong.append(f"{who}: the answer to prompt {number} is not the single server's")
        elif answer.error == "left":
            self.ends["left"] += 1
        elif answer.status == 200:
            self.ends["ended by an error event or a closed stream"] += 1
            if answer.finish == "length":
                self.wrong.append(f"{who}: said to be complete, and then {answer.error}")
        elif answer.status == 0:
            self.ends["no answer: " + answer.error.split(":")[0]] += 1
        else:
            self.ends[f"status {answer.status}"] += 1
            if answer.status < 400 or not answer.error:
                self.wrong.append(f"{who}: status {answer.status} without a word")
        if answer.total_s > DEADLINE_S:
            self.wrong.append(f"{who}: took {answer.total_s:.1f} s")

    async def client(self, number: int) -> None:
        """Asks one random thing after another: politely, slowly, or leaving in the middle; tries again when refused."""
        drawn = random.Random(self.seed * 1000 + number)
        while True:
            if self.calm.is_set():
                await self.going.wait()
            which = drawn.randrange(PROMPTS)
            body = {**self.prompts[which], "stream": drawn.random() < 0.7}
            if drawn.random() < 0.8:
                body["cache_salt"] = f"{self.seed}-{number}-{drawn.getrandbits(48)}"  # nothing of it is cached
            manners = Manners(leave_after_s=DEADLINE_S + 10)
            dice = drawn.random()
            if dice < 0.2:
                manners = Manners(leave_after_s=drawn.uniform(0.01, 2))
            elif dice < 0.3:
                manners = Manners(leave_after_s=DEADLINE_S + 10, pause_s=0.2)
            self.busy += 1
            answer = await ask(self.stage.proxy.url, "/v1/completions", body, manners)
            self.busy -= 1
            self.judge(which, answer, f"client {number}")
            if not answer.complete:
                await asyncio.sleep(drawn.uniform(0.05, 0.3))

    async def pair(self, prefiller: int, decoder: int, which: int, transfer_id: str) -> tuple[Answer, Answer]:
        """Both legs of one request without the proxy, so that its transfer id is known."""
        source = self.stage.prefillers[prefiller]
        bootstrap = self.stage.bootstraps[prefiller].url
        body = {**self.prompts[which], "cache_salt": transfer_id}
        params: Json = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
        first = await ask(
            source.url, "/v1/completions", {**body, "max_tokens": 1, "kv_transfer_params": params}, Manners(DEADLINE_S)
        )
        if not first.complete:
            return first, Answer(error="no prefill")
        engine = (await workers_of(bootstrap))[0]["engine_id"]
        params = {"do_remote_decode": False, "do_remote_prefill": True, "transfer_id": transfer_id}
        params |= {"remote_bootstrap_addr": bootstrap, "remote_engine_id": engine}
        target = self.stage.decoders[decoder].url
        second = await ask(target, "/v1/completions", {**body, "kv_transfer_params": params}, Manners(DEADLINE_S))
        self.judge(which, second, f"pair {prefiller}, {decoder}")
        return first, second


async def workers_of(bootstrap: str) -> list[Json]:
    _, text = await fetch(bootstrap + "/v1/workers", limit_s=5)
    return list(json.loads(text)["workers"])


async def until(condition: Callable[[], Awaitable[bool]], limit_s: float, pause_s: float = 0.05) -> bool:
    """Whether an async condition came true in time; what cannot be asked is not true."""
    end = time.monotonic() + limit_s
    while True:
        try:
            if await condition():
                return True
        except (OSError, TimeoutError, BrokenAnswerError, LookupError):
            pass
        if time.monotonic() > end:
            return False
        await asyncio.sleep(pause_s)  # pause of a wait
