"""Moves the cases of kvferry-bench through another transfer library, between two processes of this host.

Usage: peers.py mooncake|nixl LABEL [BLOCKxCOUNT]   prints one JSON document {label, cases: [...], first_contact_ms}

The blocks lie as in kvferry-bench (scattered over eight times as many places, another order on either side), the pools
are as large, and each case's bytes are compared after it. A case that fails or moves wrong bytes is null. UCX's
variables are taken from the environment.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import numpy as np

POOL = 512 << 20
KIB, MIB = 1024, 1 << 20
SHAPES = [(4 * KIB, 1), (4 * KIB, 256), (16 * KIB, 256), (64 * KIB, 256), (4 * KIB, 2048), (64 * MIB, 1)]
ASKED = [(int(block), int(count)) for block, count in (word.split("x") for word in sys.argv[3:])]
SECONDS = float(os.environ.get("KVFERRY_BENCH_SECONDS", "0.6"))


class Library(Protocol):
    def register(self, base: int, length: int) -> None: ...
    def hello(self) -> dict[str, str]: ...
    def connect(self, hello: dict[str, str]) -> None: ...
    def move(self, operation: str, local: list[int], remote: list[int], block: int) -> bool: ...


class Mooncake:
    def __init__(self, name: str) -> None:
        from mooncake.engine import TransferEngine

        self.engine = TransferEngine()
        if self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("Mooncake's engine does not start")

    def register(self, base: int, length: int) -> None:
        if self.engine.register_memory(base, length) != 0:
            raise RuntimeError("Mooncake does not register the pool")

    def hello(self) -> dict[str, str]:
        return {"session": f"127.0.0.1:{self.engine.get_rpc_port()}"}

    def connect(self, hello: dict[str, str]) -> None:
        self.session = hello["session"]

    def move(self, operation: str, local: list[int], remote: list[int], block: int) -> bool:
        engine = self.engine
        if len(local) == 1:
            one = engine.transfer_sync_read if operation == "read" else engine.transfer_sync_write
            return one(self.session, local[0], remote[0], block) == 0
        many = engine.batch_transfer_sync_read if operation == "read" else engine.batch_transfer_sync_write
        return many(self.session, local, remote, [block] * len(local)) == 0


class Nixl:
    def __init__(self, name: str) -> None:
        from nixl_cu13._api import nixl_agent, nixl_agent_config

        self.name = name
        self.agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))

    def register(self, base: int, length: int) -> None:
        self.memory = self.agent.register_memory([(base, length, 0, "")], "DRAM")

    def hello(self) -> dict[str, str]:
        return {"metadata": self.agent.get_agent_metadata().hex()}

    def connect(self, hello: dict[str, str]) -> None:
        self.peer = self.agent.add_remote_agent(bytes.fromhex(hello["metadata"]))

    def move(self, operation: str, local: list[int], remote: list[int], block: int) -> bool:
        agent = self.agent
        ours = agent.get_xfer_descs([(at, block, 0) for at in local], "DRAM")
        theirs = agent.get_xfer_descs([(at, block, 0) for at in remote], "DRAM")
        handle = agent.initialize_xfer(operation.upper(), ours, theirs, self.peer)
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        agent.release_xfer_handle(handle)
        return bool(state == "DONE")


LIBRARIES: dict[str, Callable[[str], Library]] = {"mooncake": Mooncake, "nixl": Nixl}


def offsets(block: int, count: int, seed: int) -> list[int]:
    if count == 1:
        return [0]
    places = np.random.default_rng(seed).permutation(min(POOL // block, 8 * count))[:count]
    return [int(place) * block for place in places]


def pool_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, POOL, np.uint8)


def digests(pool: np.ndarray, at: list[int], block: int) -> list[int]:
    return [hash(pool[offset : offset + block].tobytes()) for offset in at]


def target(library: str) -> None:
    pool = pool_of(7)
    engine = LIBRARIES[library]("target")
    engine.register(pool.ctypes.data, POOL)
    print(json.dumps({"hello": engine.hello(), "base": pool.ctypes.data}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"digests": digests(pool, asked["at"], asked["block"])}), flush=True)


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:  # libraries write lines of their own there
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError("the target ended")


def measure(engine: Library, operation: str, local: list[int], remote: list[int], block: int) -> list[float] | None:
    if not engine.move(operation, local, remote, block):
        return None
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(samples) < 5:
        began = time.perf_counter()
        moved = engine.move(operation, local, remote, block)
        samples.append(1e6 * (time.perf_counter() - began))
        if not moved:
            return None
    return samples


def initiator(library: str, label: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # both processes hash alike
    process = subprocess.Popen(
        [sys.executable, __file__, library, "--target"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    hello = answer_of(process)
    pool = pool_of(11)
    base, remote_base = pool.ctypes.data, int(hello["base"])
    engine = LIBRARIES[library]("initiator")
    engine.register(base, POOL)
    began = time.perf_counter()
    engine.connect(hello["hello"])
    engine.move("read", [base], [remote_base], 4096)
    contact = 1e3 * (time.perf_counter() - began)
    cases: list[dict[str, Any]] = []
    for block, count in ASKED or SHAPES:
        for operation in ("read", "write"):
            ours, theirs = offsets(block, count, 1), offsets(block, count, 2)
            pool[:MIB] = len(cases)  # so that a write moves other bytes than the read before it left
            samples = measure(engine, operation, [base + at for at in ours], [remote_base + at for at in theirs], block)
            process.stdin.write(json.dumps({"at": theirs, "block": block}) + "\n")
            process.stdin.flush()
            right = answer_of(process)["digests"] == digests(pool, ours, block)
            us = round(median(samples), 1) if samples and right else None
            cases.append({"operation": operation, "block": block, "count": count, "us": us})
    process.kill()
    process.wait()
    print(json.dumps({"label": label, "cases": cases, "first_contact_ms": round(contact, 2)}), flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == ["--target"]:
        target(sys.argv[1])
    elif os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    else:
        initiator(sys.argv[1], sys.argv[2])
        os._exit(0)  # the libraries' threads do not always end
