"""What the scheduler's side of the connector tells the workers' side with each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

# Of a transfer id, an engine id or an address; they come from the network.
MAX_NAME = 256

# Ids of blocks by KV group, by position in the request.
Blocks = list[list[int]]


def name_of(params: Mapping[str, Any], key: str) -> str | None:
    value = params.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME else None


@dataclass(frozen=True)
class Source:
    """Where a decoder finds a parcel: its id, the instance that publishes it, and that instance's bootstrap server."""

    transfer_id: str
    engine_id: str
    bootstrap: str

    @staticmethod
    def of(params: Mapping[str, Any]) -> Source | None:
        """Nothing: these parameters of a request name no parcel."""
        transfer_id = name_of(params, "transfer_id")
        engine_id = name_of(params, "remote_engine_id")
        bootstrap = name_of(params, "remote_bootstrap_addr")
        if transfer_id is None or engine_id is None or bootstrap is None:
            return None
        return Source(transfer_id, engine_id, bootstrap if "://" in bootstrap else f"http://{bootstrap}")


@dataclass
class Publication:
    """A prompt is computed; its blocks belong to the parcel until the request is reported as sent."""

    request_id: str
    transfer_id: str
    blocks: Blocks
    tokens: int
    fingerprint: str


@dataclass
class Load:
    """Tokens [first_token, end_token) of a parcel go into these blocks."""

    request_id: str
    source: Source
    blocks: Blocks
    first_token: int
    end_token: int
    fingerprint: str
    more: bool
    """The instance will read the same parcel again."""


@dataclass
class KVFerryMetadata(KVConnectorMetadata):
    announced: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    published: list[Publication] = field(default_factory=list)
    contacts: set[tuple[str, str]] = field(default_factory=set)
    """(bootstrap server, engine id) of instances that are going to be read from."""
    loads: list[Load] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    """Requests whose loads nobody waits for any more."""
    released: list[Source] = field(default_factory=list)
    """Parcels that this instance will not read."""

    def is_urgent(self) -> bool:
        """Whether somebody waits for this although no request may be running here."""
        return bool(self.withdrawn or self.published or self.cancelled or self.released)
