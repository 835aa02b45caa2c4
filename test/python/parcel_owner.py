"""The other side of the parcels' tests: a prefiller of 2 layers and 64 blocks, driven by JSON lines on standard input.

Arguments: tensor parallel size, this rank, the base port of the bootstrap servers.
"""

import json
import sys

import kvferry
from kv_memory import Cache


def main() -> None:
    tp_size, tp_rank, base_port = map(int, sys.argv[1:])
    engine = kvferry.Engine(engine_id=f"owner/{tp_rank}")
    cache = Cache(engine, kvferry.ParallelRank(tp_size=tp_size, tp_rank=tp_rank))
    cache.fill()
    parcels = kvferry.Parcels(engine)
    parcels.set_cache("prefiller", cache.layout)
    server = kvferry.BootstrapServer(engine, "prefiller", cache.layout, base_port=base_port)
    print(json.dumps({"address": engine.address, "port": server.port}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        what = question.pop("ask")
        answer: object = None
        try:
            if what == "publish":
                parcels.publish(**question)
            elif what == "announce":
                parcels.announce(**question)
            elif what == "withdraw":
                parcels.withdraw(**question)
            elif what == "status":
                status = parcels.status(**question)
                answer = None if status is None else [status.state, status.readers]
            elif what == "released":
                answer = parcels.take_released()
        except kvferry.Error as error:
            answer = {"error": error.code}
        print(json.dumps(answer), flush=True)


main()
