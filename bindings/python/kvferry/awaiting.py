"""Awaiting transfers and reads of parcels in asyncio: one descriptor of each event loop tells which have ended."""

import asyncio
from typing import overload
from weakref import WeakKeyDictionary

from kvferry._core import CompletionQueue, Outcome, ParcelOutcome, ParcelReading, Transfer


class _Awaited:
    """The transfers that one event loop awaits. Used by that loop's thread alone."""

    def __init__(self) -> None:
        self._queue = CompletionQueue()
        self._futures: dict[int, list[asyncio.Future[None]]] = {}

    async def wait(self, transfer: Transfer | ParcelReading) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._futures:
            loop.add_reader(self._queue.fileno(), self._wake)
        # Several engines of a process number their transfers alike: whoever wakes looks at its own again.
        self._futures.setdefault(transfer.id, []).append(future)
        self._queue.add(transfer)
        try:
            await future
        finally:
            self._forget(loop, transfer.id, future)

    def _forget(self, loop: asyncio.AbstractEventLoop, number: int, future: asyncio.Future[None]) -> None:
        futures = self._futures[number]
        futures.remove(future)
        if not futures:
            del self._futures[number]
        # A loop that awaits nothing more can be closed without a reader on a descriptor that goes away.
        if not self._futures:
            loop.remove_reader(self._queue.fileno())

    def _wake(self) -> None:
        for number in self._queue.take():
            for future in self._futures.get(number, ()):
                if not future.done():
                    future.set_result(None)


_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Awaited]" = WeakKeyDictionary()


@overload
async def wait(transfer: Transfer) -> Outcome: ...
@overload
async def wait(transfer: ParcelReading) -> ParcelOutcome: ...
async def wait(transfer: Transfer | ParcelReading) -> Outcome | ParcelOutcome:
    """Waits for the transfer's end without blocking the event loop. Cancelled, it cancels the transfer."""
    if not transfer.done():
        loop = asyncio.get_running_loop()
        awaited = _loops.get(loop)
        if awaited is None:
            awaited = _loops[loop] = _Awaited()
        try:
            while not transfer.done():
                await awaited.wait(transfer)
        except asyncio.CancelledError:
            transfer.cancel()
            raise
    return transfer.wait()
