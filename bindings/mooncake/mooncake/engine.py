"""`TransferEngine` with Mooncake's calls and return values, on a kvferry engine.

Calls return 0 or a negative number instead of raising; the reason is one line of the logger `mooncake` and what
`last_error()` returns. Peers are named `host:port`, or by the name that they gave to a metadata server.
"""

import itertools
import json
import os
import threading
from enum import IntEnum
from pathlib import Path
from typing import Any

import kvferry
from kvferry.types import Integers
from mooncake._failures import FAILED, FAILURES, LOGGER, REGISTER_CODES, Refused, Reporter
from mooncake._memory import RegisteredMemory
from mooncake._metadata import Handshake, Metadata, MetadataError, metadata_for
from mooncake._settings import Settings, join_host, split_host
from mooncake._start import choice_of, create_engine

SUPPORT_CUDA = False
SUPPORT_EFA = False
SUPPORT_HIP = False
SUPPORT_MNNVL = False
SUPPORT_MUSA = False
SUPPORT_INTRA_NVLINK = False

TIMED_OUT = -2  # of transfer_check_status()

# Batches whose status nobody has asked for; each holds its transfer's outcome, under 1 KiB.
MAX_BATCHES = 65536


class TransferOpcode(IntEnum):
    Read = 0
    Write = 1


Read = TransferOpcode.Read
Write = TransferOpcode.Write


class TransferNotify:
    """A message that the peer takes from get_notifies(), after the data that it was sent with."""

    def __init__(self, name: str = "", msg: str = "") -> None:
        self.name = name
        self.msg = msg

    def __repr__(self) -> str:
        return f"TransferNotify(name={self.name!r}, msg={self.msg!r})"


def _pair(notify: TransferNotify | None) -> tuple[str, bytes] | None:
    return None if notify is None else (notify.name, notify.msg.encode("utf-8", "surrogateescape"))


def _operation(opcode: int) -> str:
    return "write" if opcode == TransferOpcode.Write else "read"


# Who may connect, by the mode of kvferry's engine.
ACCESS = {
    "open": "open: whoever reaches the port may read and write registered memory, as with Mooncake",
    "psk": "psk: whoever holds the secret may read and write registered memory",
    "mtls": "mtls: whoever holds a certificate by an allowed name may read and write registered memory",
}


class TransferEngine(Reporter):
    """Thread-safe once initialize() has returned. The interpreter's lock is let go of while a call waits."""

    TransferOpcode = TransferOpcode

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._engine: kvferry.Engine | None = None
        self._metadata: Metadata = Handshake()
        self._name = ""
        self._timeout: float | None = None
        self._choice: dict[str, Any] = {}
        self._peers: dict[str, kvferry.Peer] = {}  # by target
        self._memory = RegisteredMemory()
        self._batches: dict[int, kvferry.Transfer] = {}  # under _lock
        self._batch_ids = itertools.count(1)

    def __del__(self) -> None:
        if getattr(self, "_engine", None) is not None and self._name:
            try:
                self._metadata.withdraw(self._name)
            except MetadataError as error:
                LOGGER.debug("%s", error)

    # ---- starting

    def initialize(self, local_hostname: str, metadata_server: str, protocol: str, device_name: str) -> int:
        return self.initialize_ext(local_hostname, metadata_server, protocol, device_name, "")

    def initialize_ext(
        self, local_hostname: str, metadata_server: str, protocol: str, device_name: str, metadata_type: str
    ) -> int:
        """`device_name` is accepted and chooses nothing: variables do (docs/rdma.md)."""

        def start() -> None:
            if self._engine is not None:
                raise Refused("initialize() was called before")
            settings = Settings.from_environment(os.environ)
            if settings.log_level is not None:
                LOGGER.setLevel(settings.log_level)
            metadata = metadata_for(metadata_server, metadata_type)
            host, port = split_host(local_hostname)
            # Under P2PHANDSHAKE the port of the name has never meant anything.
            wanted = 0 if isinstance(metadata, Handshake) else port
            engine = create_engine(settings, host, wanted, protocol)
            own_port = engine.address.rpartition(":")[2]
            metadata.publish(local_hostname, join_host(host, int(own_port)))
            self._engine, self._metadata, self._timeout = engine, metadata, settings.timeout
            self._name = local_hostname
            self._choice = choice_of(engine, protocol, settings)

        return self._status("initialize", start)

    def get_rpc_port(self) -> int:
        """0 before initialize()."""
        return 0 if self._engine is None else int(self._engine.address.rpartition(":")[2])

    def get_engine(self) -> kvferry.Engine | None:
        return self._engine

    def get_local_topology(self, device_name: str | None = None) -> str:
        """JSON: for each memory node, the devices that it prefers and those that it may use: none here."""
        nodes = sorted(Path("/sys/devices/system/node").glob("node[0-9]*"), key=lambda node: int(node.name[4:]))
        names = [node.name[4:] for node in nodes] or ["0"]
        return json.dumps({f"cpu:{name}": [[], []] for name in names})

    # ---- memory

    def register_memory(self, buffer_addr: int, capacity: int, location: str = "*") -> int:
        return self.batch_register_memory((buffer_addr,), (capacity,), location)

    def batch_register_memory(self, buffer_addresses: Integers, capacities: Integers, location: str = "*") -> int:
        """All or none."""
        return self._status(
            "register_memory",
            lambda: self._memory.register(self._started(), buffer_addresses, capacities),
            REGISTER_CODES,
        )

    def unregister_memory(self, buffer_addr: int) -> int:
        return self.batch_unregister_memory((buffer_addr,))

    def batch_unregister_memory(self, buffer_addresses: Integers) -> int:
        """When it returns 0, nothing touches the memory any more. The addresses that are registered are unregistered
        even when others are not."""
        return self._status("unregister_memory", lambda: self._memory.unregister(buffer_addresses))

    def allocate_managed_buffer(self, length: int) -> int:
        """Memory of the engine, registered; its address, or 0."""
        return self._value("allocate_managed_buffer", lambda: self._memory.allocate(self._started(), length), 0)

    def free_managed_buffer(self, addr: int, length: int) -> int:
        return self.unregister_memory(addr)

    def write_bytes_to_buffer(self, dst: int, data: bytes | str, length: int) -> int:
        return self._status("write_bytes_to_buffer", lambda: self._memory.store(dst, data, length))

    def read_bytes_from_buffer(self, addr: int, length: int) -> bytes:
        """Raises ValueError for memory that is not registered, or a GPU's."""
        try:
            return self._memory.load(addr, length)
        except Refused as refused:
            raise ValueError(str(refused)) from refused

    def get_first_buffer_address(self, segment: str) -> int:
        def first() -> int:
            peer = self._peer(segment)
            peer.sync()
            return min(peer.regions(), key=lambda region: region.id).address if peer.regions() else 0

        return self._value("get_first_buffer_address", first, 0)

    # ---- transfers that the caller waits for

    def transfer_sync(  # noqa: PLR0913, the interface is given
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        opcode: int,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        return self._transfer(
            target_hostname, _operation(opcode), (buffer,), (peer_buffer_address,), (length,), _pair(notify)
        )

    def transfer_sync_write(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        return self._transfer(target_hostname, "write", (buffer,), (peer_buffer_address,), (length,))

    def transfer_sync_read(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        return self._transfer(target_hostname, "read", (buffer,), (peer_buffer_address,), (length,))

    def batch_transfer_sync(  # noqa: PLR0913, the interface is given
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: int,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        return self._transfer(
            target_hostname, _operation(opcode), buffers, peer_buffer_addresses, lengths, _pair(notify)
        )

    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
    ) -> int:
        return self._transfer(target_hostname, "write", buffers, peer_buffer_addresses, lengths)

    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
    ) -> int:
        return self._transfer(target_hostname, "read", buffers, peer_buffer_addresses, lengths)

    # ---- transfers that go on by themselves

    def transfer_submit_write(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        return self._submit(target_hostname, "write", (buffer,), (peer_buffer_address,), (length,))

    def batch_transfer_async(  # noqa: PLR0913, the interface is given
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        opcode: int,
        transport_hint: str = "",
    ) -> int:
        return self._submit(target_hostname, _operation(opcode), buffers, peer_buffer_addresses, lengths)

    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
    ) -> int:
        return self._submit(target_hostname, "write", buffers, peer_buffer_addresses, lengths)

    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: Integers,
        peer_buffer_addresses: Integers,
        lengths: Integers,
        transport_hint: str = "",
    ) -> int:
        return self._submit(target_hostname, "read", buffers, peer_buffer_addresses, lengths)

    def transfer_check_status(self, batch_id: int) -> int:
        """1 done, 0 pending, -1 failed, -2 timed out. Every answer but 0 frees the id; a freed one is -1."""
        with self._lock:
            transfer = self._batches.get(batch_id)
            outcome = transfer.poll() if transfer is not None else None
            if transfer is not None and outcome is None:
                return 0
            self._batches.pop(batch_id, None)
        if outcome is None:
            return self._fail("transfer_check_status", f"no batch {batch_id}")
        if outcome.ok:
            return 1
        self._fail("transfer_check_status", outcome.error)
        return TIMED_OUT if outcome.code == "deadline_exceeded" else FAILED

    def get_batch_transfer_status(self, batch_ids: Integers) -> int:
        """Waits for all of them and frees them: 0 when all went well."""
        with self._lock:
            transfers = [(number, self._batches.pop(number, None)) for number in batch_ids]
        status = 0
        for number, transfer in transfers:
            if transfer is None:
                status = self._fail("get_batch_transfer_status", f"no batch {number}")
                continue
            try:
                transfer.wait()
            except kvferry.Error as error:
                status = self._fail("get_batch_transfer_status", str(error))
        return status

    # ---- messages and words

    def get_notifies(self) -> list[TransferNotify]:
        received = [] if self._engine is None else self._engine.notifications()
        return [TransferNotify(one.name, one.payload.decode("utf-8", "surrogateescape")) for one in received]

    def send_probe(self, peer_server_name: str) -> int:
        """0 when the peer answers."""
        return self._status("send_probe", lambda: self._peer(peer_server_name).sync())

    def describe(self) -> str:
        """JSON: what kvferry's engine says of itself and its peers, the protocol asked for, and who may connect."""
        if self._engine is None:
            return "{}"
        told = json.loads(self._engine.describe())
        told["protocol"] = self._choice
        told["access"] = ACCESS.get(told["auth"], "unknown")
        return json.dumps(told)

    # ---- within

    def _started(self) -> kvferry.Engine:
        if self._engine is None:
            raise Refused("initialize() must be called first")
        return self._engine

    def _peer(self, target: str) -> kvferry.Peer:
        peer = self._peers.get(target)
        if peer is None:
            engine = self._started()
            peer = self._peers[target] = engine.peer(self._metadata.address_of(target))
        return peer

    def _has_moved(self, target: str) -> bool:
        """Whether the metadata server names another address for a peer that did not answer at the one we know."""
        known = self._peers.pop(target, None)
        return known is not None and self._peer(target).address != known.address

    def _transfer(  # noqa: PLR0913
        self,
        target: str,
        operation: str,
        local: Integers,
        remote: Integers,
        lengths: Integers,
        notify: tuple[str, bytes] | None = None,
    ) -> int:
        try:
            engine = self._started()
            peer = self._peers.get(target) or self._peer(target)
            outcome = engine.transfer_addresses(peer, operation, local, remote, lengths, self._timeout, notify)
            if outcome.code == "unavailable" and self._has_moved(target):
                peer = self._peer(target)
                outcome = engine.transfer_addresses(peer, operation, local, remote, lengths, self._timeout, notify)
        except FAILURES as error:
            return self._fail(f"transfer ({operation}) to {target}", str(error))
        return 0 if outcome.ok else self._fail(f"transfer ({operation}) to {target}", outcome.error)

    def _submit(self, target: str, operation: str, local: Integers, remote: Integers, lengths: Integers) -> int:
        def submit() -> int:
            if len(self._batches) >= MAX_BATCHES:
                raise Refused(f"{MAX_BATCHES} batches wait for transfer_check_status or get_batch_transfer_status")
            engine = self._started()
            try:
                transfer = engine.submit_addresses(self._peer(target), operation, local, remote, lengths, self._timeout)
            except kvferry.Error as error:
                if error.code != "unavailable" or not self._has_moved(target):
                    raise
                transfer = engine.submit_addresses(self._peer(target), operation, local, remote, lengths, self._timeout)
            number = next(self._batch_ids)
            with self._lock:
                self._batches[number] = transfer
            return number

        return self._value(f"transfer ({operation}) to {target}", submit, 0)
