"""What a set of requests must have moved, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asking import Answer
from servers import Deployment, Server, get

BLOCK_TOKENS = 128
# 4 layers, K and V, 2 heads of 64 floats.
BLOCK_BYTES = 4 * 2 * 2 * 64 * 4 * BLOCK_TOKENS


class CheckError(AssertionError):
    """A case failed; says what."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise CheckError(what)


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """How long it took."""
    began = time.monotonic()
    while not holds():
        check(time.monotonic() - began < seconds, f"not within {seconds} s: {what}")
        time.sleep(0.02)  # pause of a wait
    return time.monotonic() - began


def blocks_of(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def bytes_of(tokens: int, window: int) -> int:
    """Of a prompt's KV; where half of the layers have a window, those need the blocks that it still reaches only."""
    blocks = blocks_of(tokens)
    dropped = max(tokens - window + 1, 0) // BLOCK_TOKENS if window else 0
    return blocks * BLOCK_BYTES - dropped * BLOCK_BYTES // 2


@dataclass
class Moved:
    """Counters of a deployment at one moment."""

    bytes: int
    computed: int
    """Tokens of prompts that the decoder computed itself."""
    requests: int

    @staticmethod
    def of(deployment: Deployment) -> Moved:
        decoder = deployment.decoder
        if deployment.setup.connector == "kvferry":
            moved = int(decoder.metric("vllm:kvferry_read_bytes_total"))
        else:
            moved = deployment.moved()
        computed = int(decoder.metric("vllm:prompt_tokens_by_source_total", source="local_compute"))
        return Moved(moved, computed, int(decoder.metric("vllm:request_success_total")))


class Ledger:
    """Compares what moved since it was made with what should have."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._before = Moved.of(deployment)

    def close(self, prompts: Sequence[Sequence[int]], cached_blocks: int = 0) -> dict[str, int]:
        """`cached_blocks`: of these prompts, how many the decoder has already."""
        window = self._deployment.setup.window
        expected = sum(bytes_of(len(prompt), window) for prompt in prompts) - cached_blocks * BLOCK_BYTES
        before = self._before

        def told() -> dict[str, int]:
            now = Moved.of(self._deployment)
            # Each request computes its last token, whatever it has read.
            computed = now.computed - before.computed - len(prompts)
            return {
                "kv_bytes_expected": expected,
                "kv_bytes_read": now.bytes - before.bytes,
                "recomputed_blocks": blocks_of(max(computed, 0)),
                "requests": now.requests - before.requests,
            }

        # Metrics come with the step after.
        eventually(lambda: told()["requests"] >= len(prompts), 60, "the decoder's metrics count all requests")
        result = told()
        check(result["kv_bytes_read"] == expected, f"bytes read are not those expected: {result}")
        check(result["recomputed_blocks"] == 0, f"the decoder computed what it should have read: {result}")
        return result


def check_equal(got: Sequence[Answer], wanted: Sequence[Answer]) -> None:
    wrong = [i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if not a.equals(b)]
    check(not wrong, f"{len(wrong)} of {len(wanted)} answers differ: {wrong[:3] and (got[wrong[0]], wanted[wrong[0]])}")


def forget_prefixes(server: Server) -> None:
    """The server's prefix cache is empty afterwards."""
    eventually(lambda: get(server.port, "/reset_prefix_cache", "POST")[0] == 200, 60, "the prefix cache can be reset")
