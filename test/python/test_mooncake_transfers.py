"""The calls of mooncake.engine.TransferEngine that move memory, with their return values."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import PORTS, Child
from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

BYTES = 1 << 20
Bytes = npt.NDArray[np.uint8]


class Side:
    """An initiator with registered memory."""

    def __init__(self, engine: TransferEngine) -> None:
        self.engine = engine
        self.memory: Bytes = np.random.default_rng(11).integers(0, 256, BYTES, np.uint8)
        self.base = self.memory.ctypes.data
        assert engine.register_memory(self.base, BYTES) == 0


@pytest.fixture(params=["local", "tcp"])
def side(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, make_engine: Callable[..., TransferEngine]
) -> Side:
    monkeypatch.setenv("KVFERRY_FABRICS", request.param)
    side = Side(make_engine())
    monkeypatch.delenv("KVFERRY_FABRICS")  # a child has both
    return side


@pytest.fixture
def child(start_child: Callable[..., Child]) -> Child:
    return start_child()


def bytes_of(child: Child, offset: int, length: int) -> bytes:
    return bytes.fromhex(child.ask("bytes", offset=offset, length=length))


def test_what_was_written_can_be_read_back(side: Side, child: Child) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        length = int(random.integers(1, 65536))
        source, far, back = (int(random.integers(0, BYTES // 4)) for _ in range(3))
        written = side.memory[source : source + length].tobytes()
        assert side.engine.transfer_sync_write(child.target, side.base + source, child.address + far, length) == 0
        assert bytes_of(child, far, length) == written
        back += BYTES // 2
        assert side.engine.transfer_sync_read(child.target, side.base + back, child.address + far, length) == 0
        assert side.memory[back : back + length].tobytes() == written


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda x: np.array(x, np.uint64)], ids=str)
def test_batches_of_scattered_blocks_take_any_sequence(side: Side, child: Child, kind: Callable[..., Any]) -> None:
    near = np.random.default_rng(2).permutation(128) * 4096
    far = np.random.default_rng(3).permutation(128) * 4096
    buffers = kind([int(side.base + at) for at in near])
    peers = kind([int(child.address + at) for at in far])
    lengths = kind([4096] * 128)
    before = {int(at): bytes_of(child, int(at), 4096) for at in far}
    assert side.engine.batch_transfer_sync_read(child.target, buffers, peers, lengths) == 0
    for here, there in zip(near, far, strict=True):
        assert side.memory[here : here + 4096].tobytes() == before[int(there)]
    side.memory[:] = 255 - side.memory
    assert side.engine.batch_transfer_sync_write(child.target, buffers, peers, lengths) == 0
    for here, there in zip(near, far, strict=True):
        assert bytes_of(child, int(there), 4096) == side.memory[here : here + 4096].tobytes()


def test_a_notification_arrives_after_its_data(side: Side, child: Child) -> None:
    notify = TransferNotify("layer 3", "ready ✓")
    status = side.engine.transfer_sync(
        child.target, side.base, child.address, 4096, TransferOpcode.Write, notify, transport_hint="tcp"
    )
    assert status == 0
    assert child.ask("notifies") == [["layer 3", "ready ✓"]]
    assert bytes_of(child, 0, 4096) == side.memory[:4096].tobytes()
    assert child.ask("notifies") == []
    assert (
        side.engine.batch_transfer_sync(
            child.target, [side.base], [child.address], [64], TransferOpcode.Read, notify=notify
        )
        == 0
    )
    assert child.ask("notifies") == [["layer 3", "ready ✓"]]


def wait_until_ended(engine: TransferEngine, number: int) -> int:
    deadline = time.monotonic() + 60
    while (status := engine.transfer_check_status(number)) == 0 and time.monotonic() < deadline:
        time.sleep(0.001)  # pause of a wait
    return status


def test_a_batch_in_flight_is_asked_for_by_its_id(side: Side, child: Child) -> None:
    engine = side.engine
    number = engine.transfer_submit_write(child.target, side.base, child.address, BYTES)
    assert number > 0
    assert wait_until_ended(engine, number) == 1
    assert bytes_of(child, 0, BYTES) == side.memory.tobytes()
    assert engine.transfer_check_status(number) == -1, "the id is freed"
    assert "no batch" in engine.last_error()


def test_many_batches_are_waited_for_together(side: Side, child: Child) -> None:
    engine = side.engine
    theirs = bytes_of(child, 0, BYTES // 2)
    numbers = [
        engine.batch_transfer_async_read(child.target, [side.base + at], [child.address + at], [BYTES // 16])
        for at in range(0, BYTES // 2, BYTES // 16)
    ]
    assert all(number > 0 for number in numbers) and len(set(numbers)) == len(numbers)
    assert engine.get_batch_transfer_status(numbers) == 0
    assert side.memory[: BYTES // 2].tobytes() == theirs
    assert engine.get_batch_transfer_status(numbers) == -1, "the ids are freed"
    assert engine.get_batch_transfer_status([]) == 0
    number = engine.batch_transfer_async_write(child.target, [side.base], [child.address], [16])
    assert engine.get_batch_transfer_status([number]) == 0
    number = engine.batch_transfer_async(child.target, [side.base], [child.address], [16], TransferOpcode.Write)
    assert engine.get_batch_transfer_status([number, 99999]) == -1


def test_ids_that_never_were_are_failed_and_harm_nothing(side: Side) -> None:
    for number in (0, -1, 12345, 2**64 - 1):
        assert side.engine.transfer_check_status(number) == -1
    assert side.engine.get_batch_transfer_status([0, 77]) == -1


def test_an_unknown_peer_is_refused_with_a_reason(side: Side) -> None:
    engine = side.engine
    assert engine.transfer_sync_write("127.0.0.1:1", side.base, 4096, 16) == -1
    assert "127.0.0.1:1" in engine.last_error()
    assert engine.batch_transfer_async_read("127.0.0.1:1", [side.base], [4096], [16]) == 0
    assert engine.send_probe("127.0.0.1:1") != 0
    assert engine.get_first_buffer_address("127.0.0.1:1") == 0
    assert engine.transfer_sync_read("no port here", side.base, 4096, 16) == -1
    assert "port" in engine.last_error()


def test_a_probe_and_the_first_buffer_of_a_peer(side: Side, child: Child) -> None:
    assert side.engine.send_probe(child.target) == 0
    assert side.engine.get_first_buffer_address(child.target) == child.address


def test_memory_that_is_not_registered_is_refused_on_both_sides(side: Side, child: Child) -> None:
    stray = np.zeros(64, np.uint8)
    engine = side.engine
    assert engine.transfer_sync_read(child.target, stray.ctypes.data, child.address, 64) == -1
    assert "not registered" in engine.last_error()
    assert not stray.any()
    assert engine.transfer_sync_write(child.target, side.base + BYTES - 8, child.address, 16) == -1
    assert engine.transfer_sync_write(child.target, side.base, child.address + BYTES - 8, 16) == -1
    assert engine.transfer_sync_write(child.target, side.base, 4096, 16) == -1
    assert "has not registered" in engine.last_error()
    assert child.ask("unregister") == 0
    assert engine.transfer_sync_read(child.target, side.base, child.address, 64) == -1


def test_requests_that_make_no_sense_are_refused(side: Side, child: Child) -> None:
    engine = side.engine
    assert engine.batch_transfer_sync_write(child.target, [side.base], [child.address], [1, 2]) == -1
    assert engine.batch_transfer_sync_write(child.target, [], [], []) == -1
    assert engine.batch_transfer_sync_write(child.target, [-1], [child.address], [1]) == -1
    assert engine.batch_transfer_sync_write(child.target, [2**64], [child.address], [1]) == -1
    assert engine.batch_transfer_sync_write(child.target, np.array([-1]), [child.address], [1]) == -1
    with pytest.raises(TypeError):
        engine.batch_transfer_sync_write(child.target, ["a"], [child.address], [1])


def test_a_peer_that_restarts_is_found_again(
    side: Side, start_child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVFERRY_LISTEN", f"127.0.0.1:{PORTS.take()}")
    first = start_child()
    assert side.engine.transfer_sync_read(first.target, side.base, first.address, 4096) == 0
    first.kill()
    assert side.engine.transfer_sync_read(first.target, side.base, first.address, 4096) == -1
    second = start_child()
    assert second.target == first.target
    for _ in range(2):
        assert side.engine.transfer_sync_write(second.target, side.base, second.address, 4096) == 0
    assert bytes_of(second, 0, 4096) == side.memory[:4096].tobytes()


def test_a_peer_is_named_by_its_ipv6_address(make_engine: Callable[..., TransferEngine]) -> None:
    owner, reader = make_engine(name="::1"), make_engine()
    theirs, mine = owner.allocate_managed_buffer(64), reader.allocate_managed_buffer(64)
    assert owner.write_bytes_to_buffer(theirs, b"over IPv6", 9) == 0
    target = f"[::1]:{owner.get_rpc_port()}"
    assert reader.transfer_sync_read(target, mine, theirs, 9) == 0, reader.last_error()
    assert reader.read_bytes_from_buffer(mine, 9) == b"over IPv6"


def test_what_a_peer_registers_later_is_found_and_what_it_gave_up_is_not(
    side: Side, make_engine: Callable[..., TransferEngine]
) -> None:
    peer = make_engine()
    target = f"127.0.0.1:{peer.get_rpc_port()}"
    theirs = np.zeros(3 * 4096, np.uint8)
    at = theirs.ctypes.data
    for count in (1, 3):  # the second time, at the same address and longer
        assert peer.register_memory(at, count * 4096) == 0
        assert side.engine.transfer_sync_write(target, side.base, at, count * 4096) == 0, side.engine.last_error()
        assert theirs[: count * 4096].tobytes() == side.memory[: count * 4096].tobytes()
        assert peer.unregister_memory(at) == 0
        theirs[:] = 0
        assert side.engine.transfer_sync_write(target, side.base, at, 4096) == -1
        assert not theirs.any()


def test_ten_threads_write_at_once(side: Side, child: Child) -> None:
    share = BYTES // 10
    results: list[int] = []

    def write(worker: int) -> None:
        at = worker * share
        for _ in range(20):
            results.append(
                side.engine.batch_transfer_sync_write(child.target, [side.base + at], [child.address + at], [share])
            )

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 200
    assert bytes_of(child, 0, share * 10) == side.memory[: share * 10].tobytes()


def probe(side: Side, child: Child) -> None:
    side.engine.send_probe(child.target)


def read(side: Side, child: Child) -> None:
    side.engine.transfer_sync_read(child.target, side.base, child.address, 64)


def wait_for_a_batch(side: Side, child: Child) -> None:
    number = side.engine.batch_transfer_async_read(child.target, [side.base], [child.address], [64])
    side.engine.get_batch_transfer_status([number])


@pytest.mark.parametrize("side", ["tcp"], indirect=True)  # by which a peer that is stopped cannot answer
@pytest.mark.parametrize("call", [probe, read, wait_for_a_batch])
def test_a_waiting_call_leaves_the_interpreter_to_other_threads(
    side: Side, child: Child, call: Callable[[Side, Child], None]
) -> None:
    read(side, child)
    child.stop()
    try:
        done = threading.Event()

        def wait() -> None:
            call(side, child)
            done.set()

        thread = threading.Thread(target=wait)
        thread.start()
        turns = 0
        while not done.is_set() and turns < 50:
            turns += 1
            done.wait(0.0001)
        assert turns == 50, "this thread ran while the other waited"
    finally:
        child.go_on()
    thread.join()
