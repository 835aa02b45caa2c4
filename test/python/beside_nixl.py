"""The fabric ucx and another copy of UCX, that of NIXL's wheel, at work in one process.

Argument: which of them starts first. Prints what each has moved, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from nixl_cu13._api import nixl_agent, nixl_agent_config
from numpy.typing import NDArray

import kvferry

BYTES = 1 << 20


def random_bytes(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, BYTES, np.uint8)


class Nixl:
    """An agent that reads its own memory through its UCX."""

    def __init__(self) -> None:
        self._agent = nixl_agent("agent", nixl_agent_config(backends=["UCX"]))
        self._from, self._to = random_bytes(1), np.zeros(BYTES, np.uint8)
        for memory in (self._from, self._to):
            self._agent.register_memory([(memory.ctypes.data, BYTES, 0, "")], "DRAM")

    def moves(self) -> bool:
        self._to[:] = 0
        to, source = (
            self._agent.get_xfer_descs([(memory.ctypes.data, BYTES, 0)], "DRAM") for memory in (self._to, self._from)
        )
        transfer = self._agent.initialize_xfer("READ", to, source, self._agent.name)
        state = self._agent.transfer(transfer)
        end = time.monotonic() + 40
        while state == "PROC" and time.monotonic() < end:
            state = self._agent.check_xfer_state(transfer)
        self._agent.release_xfer_handle(transfer)
        return state == "DONE" and bool(np.array_equal(self._to, self._from))


class Pair:
    """An engine that reads another's memory through ours."""

    def __init__(self) -> None:
        self._owner, self._reader = kvferry.Engine(), kvferry.Engine()
        self._from, self._to = random_bytes(2), np.zeros(BYTES, np.uint8)
        self._region = self._owner.register(self._from, readable=True)
        self._landing = self._reader.register(self._to)
        self._peer = self._reader.peer(self._owner.address)

    def moves(self) -> bool:
        self._to[:] = 0
        outcome = self._reader.read(self._peer, self._to, self._region.span()).wait()
        return outcome.fabric == "ucx" and bool(np.array_equal(self._to, self._from))

    def close(self) -> None:
        self._reader.close()
        self._owner.close()


def main() -> None:
    moved = {}
    if sys.argv[1] == "nixl":
        nixl = Nixl()
        moved["nixl before"] = nixl.moves()
        pair = Pair()
    else:
        pair = Pair()
        moved["ours before"] = pair.moves()
        nixl = Nixl()
    moved["ours"] = pair.moves()
    moved["nixl"] = nixl.moves()
    pair.close()
    moved["nixl after"] = nixl.moves()
    copies = {word for word in Path("/proc/self/maps").read_text().split() if "/libucp" in word}
    print(json.dumps({"moved": moved, "copies": sorted(copies)}), flush=True)
    os._exit(0)  # NIXL's wheel, with nobody beside it, breaks down in a destructor of its libnl where a process exits


main()
