"""How initialize() gets its engine."""

import os

import kvferry
from kvferry._core import choose_fabrics
from mooncake._failures import LOGGER
from mooncake._settings import Settings, listen_addresses


def choose(protocol: str, settings: Settings) -> tuple[list[str] | None, dict[str, str]]:
    """The fabrics (None where KVFERRY_FABRICS names them) and what describe() says of the choice."""
    if settings.fabrics_named:
        return None, {"asked": protocol, "fallback": "KVFERRY_FABRICS names the fabrics"}
    fabrics, fallback = choose_fabrics(protocol, not settings.strict_protocol)
    if not fallback:
        return fabrics, {"asked": protocol}
    LOGGER.warning("%s: using %s", fallback, ", ".join(fabrics))
    return fabrics, {"asked": protocol, "fallback": fallback}


def create_engine(settings: Settings, host: str, port: int, fabrics: list[str] | None) -> kvferry.Engine:
    """Open to whoever reaches it, as Mooncake's is."""
    refused: kvferry.Error | None = None
    for address in listen_addresses(settings, host, port):
        try:
            return kvferry.Engine(
                address,
                fabrics=fabrics,
                allow_open=True,
                engine_id=settings.engine_id or f"{host}/{os.getpid()}",
            )
        except kvferry.Error as error:
            # Taken, or no address of this machine.
            if error.code not in ("already_exists", "unavailable"):
                raise
            refused = error
    assert refused is not None
    raise refused
