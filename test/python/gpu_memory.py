"""Moves bytes between two engines of the drop-in whose memory is a GPU's, by the driver that KVFERRY_CUDA_DRIVER names.

Prints what has arrived, as JSON.
"""

import ctypes
import json
import os
import random

from mooncake.engine import TransferEngine

BYTES = 1 << 20
BLOCK = 4096


class Gpu:
    """The first one, by the driver's own calls; `call` fails unless they succeed."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(os.environ["KVFERRY_CUDA_DRIVER"])
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        assert status == 0, f"{name}: {status}"

    def allocate(self, length: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(length))
        return address.value

    def store(self, address: int, data: bytes) -> None:
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)))

    def load(self, address: int, length: int) -> bytes:
        into = ctypes.create_string_buffer(length)
        self.call("cuMemcpyDtoH_v2", into, ctypes.c_uint64(address), ctypes.c_size_t(length))
        return into.raw


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
    seen = {
        "read": read,
        "blocks that are the owner's": sum(landed[at : at + BLOCK] == data[at : at + BLOCK] for at in half),
        "other bytes that changed": sum(any(landed[at : at + BLOCK]) for at in set(blocks) - set(half)),
    }
    gpu.store(ours, bytes(range(256)) * (BYTES // 256))
    seen["write"] = engines[0].batch_transfer_sync_write(session, [ours], [theirs], [BYTES])
    seen["written"] = gpu.load(theirs, BYTES) == bytes(range(256)) * (BYTES // 256)
    print(json.dumps(seen))


main()
