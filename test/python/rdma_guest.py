"""The drop-in's writes over an RDMA device, as test_rdma_guest.py runs them where there is one.

The initiator, unless the first argument is `own`: then the side that is written to, in another PID namespace, as in a
container of its own, where the initiator cannot reach its memory by the kernel. Prints one JSON line.
"""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

BYTES = 64 << 20
BLOCK = 1 << 20
HOST = "10.0.0.1"  # of both: an address of the other device is reached by that, which the initiator does not have


def start() -> tuple[TransferEngine, int]:
    engine = TransferEngine()
    assert engine.initialize(HOST, "P2PHANDSHAKE", "rdma", "") == 0, engine.last_error()
    memory = engine.allocate_managed_buffer(BYTES)
    assert memory != 0, engine.last_error()
    return engine, memory


def told(engine: TransferEngine, within: float = 120) -> TransferNotify:
    deadline = time.monotonic() + within
    while not (notifies := engine.get_notifies()):
        assert time.monotonic() < deadline, "no notification came"
        time.sleep(0.001)  # pause of a wait
    return notifies[0]


def own() -> None:
    """Each message says which byte all of the memory must be when it comes."""
    engine, memory = start()
    print(json.dumps({"target": f"{HOST}:{engine.get_rpc_port()}", "memory": memory}), flush=True)
    while (message := told(engine).msg) != "end":
        last = ctypes.c_ubyte.from_address(memory + BYTES - 1).value
        whole = ctypes.string_at(memory, BYTES) == bytes([int(message)]) * BYTES
        print(json.dumps({"last": last, "whole": whole}), flush=True)


def packets() -> int:
    counters = Path("/sys/class/infiniband").glob("*/ports/1/hw_counters/sent_pkts")
    return sum(int(counter.read_text()) for counter in counters)


def initiate() -> dict[str, Any]:
    engine, memory = start()
    owner = subprocess.Popen(
        ["unshare", "--pid", "--fork", sys.executable, __file__, "own"], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    theirs = json.loads(owner.stdout.readline())
    offsets = range(0, BYTES, BLOCK)
    ours = [memory + offset for offset in offsets]
    their_blocks = [theirs["memory"] + offset for offset in offsets]
    lengths = [BLOCK] * len(ours)

    def tell(message: str) -> None:
        notify = TransferNotify("", message)
        code = engine.transfer_sync(theirs["target"], memory, theirs["memory"], 1, TransferOpcode.Write, notify)
        assert code == 0, engine.last_error()

    writes = []

    def write(byte: int, notify: TransferNotify | None) -> None:
        ctypes.memset(memory, byte, BYTES)
        before = packets()
        if notify is None:
            code = engine.batch_transfer_sync_write(theirs["target"], ours, their_blocks, lengths)
        else:
            code = engine.batch_transfer_sync(
                theirs["target"], ours, their_blocks, lengths, TransferOpcode.Write, notify
            )
        assert code == 0, engine.last_error()
        crossed = packets() - before
        if notify is None:
            tell(str(byte))
        assert owner.stdout is not None
        writes.append({"byte": byte, "packets": crossed, **json.loads(owner.stdout.readline())})

    write(3, TransferNotify("written", "3"))
    write(5, None)
    described = json.loads(engine.describe())
    tell("end")
    assert owner.wait() == 0
    return {"protocol": described["protocol"], "peers": described["peers"], "writes": writes}


if __name__ == "__main__":
    if sys.argv[1:] == ["own"]:
        own()
    else:
        print(json.dumps(initiate()))
