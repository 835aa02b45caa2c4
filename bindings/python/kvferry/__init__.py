"""kvferry moves the KV cache of a prompt, and any other memory, between processes and machines.

An `Engine` registers memory, finds peers by host:port, and reads and writes their memory by spans; `Transfer` ends by
its deadline with one outcome, waited for or awaited. See docs/python.md for a walk through it.
"""

from importlib.metadata import version

from kvferry._core import (
    NO_BLOCK,
    BootstrapClient,
    BootstrapServer,
    CompletionQueue,
    Engine,
    KvGroup,
    KvLayer,
    KvLayout,
    KvPlane,
    Outcome,
    ParallelRank,
    ParcelOutcome,
    ParcelReading,
    Parcels,
    ParcelStatus,
    Peer,
    Region,
    RegisteredWorker,
    RemoteRegion,
    Transfer,
    owners_to_settle,
)
from kvferry.types import Error, Notification, ReleasedParcel, Span

__version__ = version("kvferry")

__all__ = [
    "NO_BLOCK",
    "BootstrapClient",
    "BootstrapServer",
    "CompletionQueue",
    "Engine",
    "Error",
    "KvGroup",
    "KvLayer",
    "KvLayout",
    "KvPlane",
    "Notification",
    "Outcome",
    "ParallelRank",
    "ParcelOutcome",
    "ParcelReading",
    "ParcelStatus",
    "Parcels",
    "Peer",
    "Region",
    "RegisteredWorker",
    "ReleasedParcel",
    "RemoteRegion",
    "Span",
    "Transfer",
    "owners_to_settle",
]
