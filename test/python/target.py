"""The other side of a test: a TransferEngine with 1 MiB of registered memory, driven by JSON lines on standard input.

Arguments: name and metadata server for initialize().
"""

import json
import sys

import numpy as np

from mooncake.engine import TransferEngine

BYTES = 1 << 20


def main() -> None:
    name, metadata = sys.argv[1:] or ("127.0.0.1", "P2PHANDSHAKE")
    engine = TransferEngine()
    assert engine.initialize(name, metadata, "tcp", "") == 0
    memory = np.random.default_rng(7).integers(0, 256, BYTES, np.uint8)
    assert engine.register_memory(memory.ctypes.data, BYTES) == 0
    target = f"127.0.0.1:{engine.get_rpc_port()}" if metadata == "P2PHANDSHAKE" else name
    print(json.dumps({"target": target, "address": memory.ctypes.data}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question["ask"] == "bytes":
            at = question["offset"]
            answer: object = memory[at : at + question["length"]].tobytes().hex()
        elif question["ask"] == "notifies":
            answer = [[one.name, one.msg] for one in engine.get_notifies()]
        elif question["ask"] == "unregister":
            answer = engine.unregister_memory(memory.ctypes.data)
        else:
            answer = None
        print(json.dumps(answer), flush=True)


main()
