"""kvferry moves the KV cache of a prompt, and any other memory, between processes and machines.

An `Engine` registers memory, finds peers by host:port, and reads and writes their memory by spans; `Transfer` ends by
its deadline with one outcome, waited for or awaited. See docs/python.md for a walk through it.
"""

from importlib.metadata import version

from kvferry._core import CompletionQueue, Engine, Outcome, Peer, Region, RemoteRegion, Transfer
from kvferry.types import Error, Notification, Span

__version__ = version("kvferry")

__all__ = [
    "CompletionQueue",
    "Engine",
    "Error",
    "Notification",
    "Outcome",
    "Peer",
    "Region",
    "RemoteRegion",
    "Span",
    "Transfer",
]
