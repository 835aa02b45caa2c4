"""The memory that a TransferEngine has registered, by its addresses."""

import ctypes
import mmap
import threading
from bisect import bisect_right

import kvferry
from kvferry._core import unregister_regions
from kvferry.types import Integers
from mooncake._failures import UNKNOWN_REGION, Refused


class RegisteredMemory:
    """Thread-safe. Registered addresses are the caller's to keep alive; allocated memory is kept alive here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[int, kvferry.Region] = {}

    def register(self, engine: kvferry.Engine, addresses: Integers, lengths: Integers) -> None:
        """All or none."""
        regions = engine.register_addresses(addresses, lengths, readable=True, writable=True)
        with self._lock:
            self._regions.update((region.address, region) for region in regions)

    def unregister(self, addresses: Integers) -> None:
        regions, unknown = [], []
        with self._lock:
            for address in map(int, addresses):
                region = self._regions.pop(address, None)
                if region is None:
                    unknown.append(hex(address))
                else:
                    regions.append(region)
        unregister_regions(regions)
        if unknown:
            raise Refused(f"no memory is registered at {', '.join(unknown)}", UNKNOWN_REGION)

    def allocate(self, engine: kvferry.Engine, length: int) -> int:
        region = engine.register(mmap.mmap(-1, length), readable=True, writable=True)
        with self._lock:
            self._regions[region.address] = region
        return region.address

    def store(self, address: int, data: bytes | str, length: int) -> None:
        source = data.encode() if isinstance(data, str) else bytes(data)
        if not 0 <= length <= len(source):
            raise Refused(f"{length} bytes are asked for of {len(source)}")
        self._check(address, length)
        ctypes.memmove(address, source, length)

    def load(self, address: int, length: int) -> bytes:
        self._check(address, length)
        return ctypes.string_at(address, length)

    def _check(self, address: int, length: int) -> None:
        with self._lock:
            bases = sorted(self._regions)
            at = bisect_right(bases, address) - 1
            region = self._regions[bases[at]] if at >= 0 else None
        if region is None or length < 0 or address + length > region.address + region.length:
            raise Refused(f"{length} bytes at {address:#x} are not registered")
        if region.kind != "host":
            raise Refused(f"memory at {address:#x} is {region.kind}'s, which a CPU may not touch")
