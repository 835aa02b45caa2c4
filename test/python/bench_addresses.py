"""What 256 pairs of addresses cost before anything moves: a list of pairs that lie side by side is one copy to the
engine, so the difference to the same bytes as one pair is what lists, look-ups and coalescing take.

Prints microseconds, the best of many rounds, for lists, tuples and arrays, and for lists through the package mooncake.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import kvferry
from mooncake.engine import TransferEngine

PAIRS, BLOCK, ROUNDS = 256, 16, 400


def best_of(call: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        assert call()
        best = min(best, time.perf_counter() - started)
    return best * 1e6


def measure_mooncake() -> float:
    reader, owner = TransferEngine(), TransferEngine()
    memory = np.zeros((2, PAIRS * BLOCK), np.uint8)
    for engine, own in ((reader, memory[0]), (owner, memory[1])):
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert engine.register_memory(own.ctypes.data, own.nbytes) == 0
    target = f"127.0.0.1:{owner.get_rpc_port()}"
    local, remote = ([own.ctypes.data + at for at in range(0, own.nbytes, BLOCK)] for own in memory)

    def read(local: list[int], remote: list[int], lengths: list[int]) -> float:
        return best_of(lambda: reader.batch_transfer_sync_read(target, local, remote, lengths) == 0)

    one = read(local[:1], remote[:1], [PAIRS * BLOCK])
    return round(read(local, remote, [BLOCK] * PAIRS) - one, 2)


def measure() -> dict[str, float]:
    with kvferry.Engine() as reader, kvferry.Engine() as owner:
        mine, theirs = (np.zeros(PAIRS * BLOCK, np.uint8) for _ in range(2))
        with reader.register(mine), owner.register(theirs, readable=True):
            peer = reader.peer(owner.address)
            local = [mine.ctypes.data + at for at in range(0, PAIRS * BLOCK, BLOCK)]
            remote = [theirs.ctypes.data + at for at in range(0, PAIRS * BLOCK, BLOCK)]
            lengths = [BLOCK] * PAIRS

            def read(*pairs: Any) -> float:  # noqa: ANN401
                return best_of(lambda: reader.transfer_addresses(peer, "read", *pairs))

            one = read(local[:1], remote[:1], [PAIRS * BLOCK])
            kinds: dict[str, Callable[[list[int]], Any]] = {"list": list, "tuple": tuple, "array": np.array}
            return {
                name: round(read(kind(local), kind(remote), kind(lengths)) - one, 2) for name, kind in kinds.items()
            } | {"one pair": round(one, 2), "mooncake": measure_mooncake()}


if __name__ == "__main__":
    print(json.dumps(measure()))
