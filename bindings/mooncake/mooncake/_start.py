"""How initialize() gets its engine."""

import json
import os

import kvferry
from mooncake._failures import LOGGER
from mooncake._settings import Settings, listen_addresses


def create_engine(settings: Settings, host: str, port: int, protocol: str) -> kvferry.Engine:
    """Open to whoever reaches it, as Mooncake's is."""
    refused: kvferry.Error | None = None
    elsewhere: set[str] = set()  # hosts that are not this machine
    for address in listen_addresses(settings, host, port):
        host_of_address = address.rpartition(":")[0]
        if host_of_address in elsewhere:
            continue
        try:
            return kvferry.Engine(
                address,
                protocol=protocol,
                fall_back=not settings.strict_protocol,
                allow_open=True,
                engine_id=settings.engine_id or f"{host}/{os.getpid()}",
            )
        except kvferry.Error as error:
            # Taken, or no address of this machine: then no other port of it is worth a try.
            if error.code not in ("already_exists", "unavailable"):
                raise
            if error.code == "unavailable":
                elsewhere.add(host_of_address)
            refused = error
    assert refused is not None
    raise refused


def choice_of(engine: kvferry.Engine, protocol: str, settings: Settings) -> dict[str, str]:
    """What describe() says of the protocol, and one line of the log where it is not what was asked for."""
    if settings.fabrics_named:
        return {"asked": protocol, "fallback": "KVFERRY_FABRICS names the fabrics"}
    told = json.loads(engine.describe())
    if "rdma" not in told:
        return {"asked": protocol}
    rdma = told["rdma"]
    if rdma["fabric"] is not None:
        return {"asked": protocol, "fabric": rdma["fabric"], "why": rdma["why"]}
    if protocol != "auto":
        LOGGER.warning("protocol %s: %s: using %s", protocol, rdma["why"], ", ".join(told["fabrics"]))
    return {"asked": protocol, "fallback": rdma["why"]}
