"""Prompts, and answers with their log-probabilities."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

VOCABULARY = 512
ANSWER_TOKENS = 6
TIMEOUT = 240.0


@dataclass(frozen=True)
class Answer:
    text: str
    logprobs: tuple[float, ...]

    def equals(self, other: Answer) -> bool:
        """To 3 decimals: KV of another prompt differs in the first token."""
        return (
            self.text == other.text
            and len(self.logprobs) == len(other.logprobs) == ANSWER_TOKENS
            and all(abs(a - b) < 1e-3 for a, b in zip(self.logprobs, other.logprobs, strict=True))
        )


class AskError(Exception):
    """A server answered with something else than 200."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:500]}")
        self.status = status


def prompts(count: int, seed: int, shortest: int = 10, longest: int = 1800) -> list[list[int]]:
    """Of token ids, so that their lengths are what they are; the lengths are spread evenly."""
    draw = random.Random(seed)
    step = (longest - shortest) / max(count - 1, 1)
    return [[draw.randrange(2, VOCABULARY) for _ in range(round(shortest + step * i))] for i in range(count)]


def body_of(prompt: Sequence[int], stream: bool = False, **more: Any) -> bytes:  # noqa: ANN401
    told: dict[str, Any] = {
        "model": "tiny",
        "prompt": list(prompt),
        "max_tokens": ANSWER_TOKENS,
        "min_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "logprobs": 1,
        "stream": stream,
    }
    return json.dumps(told | more).encode()


def post(port: int, path: str, body: bytes, timeout: float = TIMEOUT) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    return connection.getresponse()


def _choices(answer: http.client.HTTPResponse, stream: bool) -> Iterator[dict[str, Any]]:
    if not stream:
        yield json.loads(answer.read())["choices"][0]
        return
    for line in answer:
        if line.startswith(b"data: {"):
            yield from json.loads(line[6:])["choices"]


def ask(port: int, prompt: Sequence[int], stream: bool = False, **more: Any) -> Answer:  # noqa: ANN401
    answer = post(port, "/v1/completions", body_of(prompt, stream, **more))
    if answer.status != 200:
        raise AskError(answer.status, answer.read().decode(errors="replace"))
    text, logprobs = "", list[float]()
    for choice in _choices(answer, stream):
        text += choice["text"]
        logprobs += choice["logprobs"]["token_logprobs"] if choice.get("logprobs") else []
    return Answer(text, tuple(logprobs))


def ask_all(port: int, wanted: Sequence[Sequence[int]], at_once: int = 1, stream: bool = False) -> list[Answer]:
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda prompt: ask(port, prompt, stream), wanted))
