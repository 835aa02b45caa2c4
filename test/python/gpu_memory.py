"""Moves bytes between two engines of the drop-in whose memory is a GPU's, by the driver that KVFERRY_CUDA_DRIVER names.

Prints what has arrived, as JSON.
"""

import json
import random

from gpu import Gpu
from mooncake.engine import TransferEngine

BYTES = 1 << 20
BLOCK = 4096


def main() -> None:
    gpu = Gpu()
    data = random.Random(3).randbytes(BYTES)
    ours, theirs = gpu.allocate(BYTES), gpu.allocate(BYTES)
    gpu.store(theirs, data)
    gpu.store(ours, bytes(BYTES))
    engines = [TransferEngine(), TransferEngine()]
    for engine, memory in zip(engines, (ours, theirs), strict=True):
        assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert engine.register_memory(memory, BYTES) == 0
    session = f"127.0.0.1:{engines[1].get_rpc_port()}"
    blocks = list(range(0, BYTES, BLOCK))
    random.Random(4).shuffle(blocks)
    half = blocks[: len(blocks) // 2]
    lengths = [BLOCK] * len(half)
    to, source = ([base + at for at in half] for base in (ours, theirs))
    read = engines[0].batch_transfer_sync_read(session, to, source, lengths)
    landed = gpu.load(ours, BYTES)
    seen: dict[str, int | str] = {
        "read": read,
        "blocks that are the owner's": sum(landed[at : at + BLOCK] == data[at : at + BLOCK] for at in half),
        "other bytes that changed": sum(any(landed[at : at + BLOCK]) for at in set(blocks) - set(half)),
    }
    gpu.store(ours, bytes(range(256)) * (BYTES // 256))
    seen["write"] = engines[0].batch_transfer_sync_write(session, [ours], [theirs], [BYTES])
    seen["written"] = gpu.load(theirs, BYTES) == bytes(range(256)) * (BYTES // 256)
    # A CPU that touches it ends there.
    seen["stored"] = engines[0].write_bytes_to_buffer(ours, b"bytes", 5)
    try:
        seen["loaded"] = len(engines[0].read_bytes_from_buffer(ours, 5))
    except ValueError as refused:
        seen["loaded"] = str(refused).replace(hex(ours), "there")
    print(json.dumps(seen))


main()
