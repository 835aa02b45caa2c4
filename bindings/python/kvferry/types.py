"""The values that go in and out of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from kvferry._core import Region


class Span(NamedTuple):
    """A part of a region, as its owner's peers name it. A plain tuple: it goes through JSON and pickle."""

    region: int
    offset: int
    length: int


class Notification(NamedTuple):
    """What a peer's application sent to this one."""

    sender: str
    """The engine id of the peer."""
    name: str
    payload: bytes


class ReleasedParcel(NamedTuple):
    """The blocks of a parcel belong to its owner again."""

    transfer_id: str
    why: str
    """settled, released, expired, reader_failed, aborted or shut_down."""


class Error(RuntimeError):
    """A call or a transfer that failed.

    `code` says what a program may want to act on: invalid_argument, not_found, permission_denied, already_exists,
    resource_exhausted, unavailable, deadline_exceeded, cancelled, peer_lost, protocol, stale, gone, conflict,
    unsupported, not_quiet or internal. `peer` is the engine id of the peer and `where` the fabric, where known.
    """

    def __init__(self, message: str, code: str = "internal", peer: str = "", where: str = "") -> None:
        super().__init__(message, code, peer, where)
        self.code = code
        self.peer = peer
        self.where = where

    def __str__(self) -> str:
        return str(self.args[0])


# An object with the buffer protocol or __dlpack__ whose memory is registered, a whole region, or several of them.
LocalMemory: TypeAlias = "Region | Any | Sequence[Region | Any]"
# One span, or as many as there are pieces of local memory.
RemoteMemory: TypeAlias = "Span | tuple[int, int, int] | Sequence[Span | tuple[int, int, int]]"
# A list, tuple or one-dimensional array of integers.
Integers: TypeAlias = "Sequence[int] | Any"
