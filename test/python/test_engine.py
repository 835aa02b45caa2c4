"""The package kvferry: engines, memory of every kind, peers, transfers that are waited for and awaited."""

import array
import asyncio
import gc
import json
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvferry
from conftest import Child


@pytest.fixture(params=["local", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[kvferry.Engine, kvferry.Engine, kvferry.Peer]]:
    with (
        kvferry.Engine(engine_id="reader", fabrics=[request.param]) as reader,
        kvferry.Engine(engine_id="owner", fabrics=[request.param]) as owner,
    ):
        yield reader, owner, reader.peer(owner.address)


Pair = tuple[kvferry.Engine, kvferry.Engine, kvferry.Peer]


class OnlyDlpack:
    """A tensor of a library that speaks nothing but DLPack."""

    def __init__(self, held: Any) -> None:  # noqa: ANN401
        self._held = held

    def __dlpack__(self, **arguments: Any) -> Any:  # noqa: ANN401
        return self._held.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return tuple(self._held.__dlpack_device__())


@pytest.mark.parametrize(
    "wrap",
    [lambda a: a, lambda a: OnlyDlpack(a), lambda a: memoryview(a), lambda a: a.reshape(4, -1), np.asfortranarray],
    ids=["numpy", "dlpack", "memoryview", "matrix", "fortran"],
)
def test_any_kind_of_array_can_be_registered_and_addressed(pair: Pair, wrap: Callable[[Any], Any]) -> None:
    reader, owner, peer = pair
    theirs = np.arange(1024, dtype=np.float32)
    mine = np.zeros(1024, np.float32)
    with owner.register(wrap(theirs), readable=True) as source, reader.register(wrap(mine)) as target:
        assert (source.length, source.address) == (4096, theirs.ctypes.data)
        outcome = reader.read(peer, target, source.span()).wait()
        assert outcome.ok and outcome.bytes_done == 4096
        assert np.array_equal(mine, theirs)
        mine[:] = 0
        reader.read(peer, mine[16:32], source.span(64, 64)).wait()
        assert np.array_equal(mine[16:32], theirs[16:32]) and not mine[:16].any() and not mine[32:].any()


def test_plain_buffers_are_kept_from_moving(pair: Pair) -> None:
    reader, owner, peer = pair
    data = bytearray(b"x" * 100)
    region = owner.register(data, readable=True)
    with pytest.raises(BufferError):
        data.extend(b"more")
    mine = array.array("B", bytes(100))
    with reader.register(mine):
        reader.read(peer, mine, region.span()).wait()
    assert mine.tobytes() == bytes(data)
    region.unregister()
    data.extend(b"more")


def test_what_is_no_memory_is_refused(pair: Pair) -> None:
    engine = pair[0]
    with pytest.raises(ValueError, match="writable"):
        engine.register(b"constant")
    with pytest.raises(ValueError, match="contiguous"):
        engine.register(np.zeros((8, 8))[:, 1])
    with pytest.raises(TypeError, match="dlpack"):
        engine.register("text")
    with pytest.raises(kvferry.Error) as empty:
        engine.register(bytearray())
    assert empty.value.code == "invalid_argument"


def test_a_region_keeps_its_memory_and_lets_go_of_it(pair: Pair) -> None:
    class Array(np.ndarray):
        pass

    memory = np.zeros(64, np.uint8).view(Array)
    seen = weakref.ref(memory)
    region = pair[0].register(memory)
    del memory
    gc.collect()
    assert seen() is not None
    region.unregister()
    del region
    gc.collect()
    assert seen() is None


def test_lists_of_pieces_pair_with_lists_of_spans(pair: Pair) -> None:
    reader, owner, peer = pair
    theirs = np.random.default_rng(1).integers(0, 256, (64, 512), np.uint8)
    mine = np.zeros((64, 512), np.uint8)
    with owner.register(theirs, readable=True, writable=True) as source, reader.register(mine):
        spans = [source.span(row * 512, 512) for row in range(63, -1, -1)]
        reader.read(peer, [mine[row] for row in range(64)], spans).wait()
        assert np.array_equal(mine, theirs[::-1])
        reader.write(peer, mine[5], (source.id, 0, 512)).wait()
        assert np.array_equal(theirs[0], mine[5])
        with pytest.raises(ValueError, match="one span for each"):
            reader.read(peer, [mine[0]], spans)
        with pytest.raises(ValueError, match="511 bytes"):
            reader.read(peer, mine[0], source.span(0, 511))


def test_spans_go_through_json_and_pickle(pair: Pair) -> None:
    region = pair[1].register(np.zeros(4096, np.uint8), readable=True)
    span = region.span(16, 32)
    assert span == (region.id, 16, 32) == pickle.loads(pickle.dumps(span))
    assert kvferry.Span(*json.loads(json.dumps(span))) == span
    with pytest.raises(ValueError, match="not inside"):
        region.span(4000, 97)


def test_a_peer_tells_of_itself(pair: Pair) -> None:
    _, owner, peer = pair
    assert (peer.engine_id, peer.incarnation, peer.regions()) == ("", 0, [])
    memory = np.zeros(4096, np.uint8)
    with owner.register(memory, readable=True):
        peer.sync()
        assert peer.engine_id == "owner" and peer.incarnation != 0
        (region,) = peer.regions()
        assert (region.address, region.length, region.readable, region.writable) == (
            memory.ctypes.data,
            4096,
            True,
            False,
        )


def test_failures_are_exceptions_with_a_code(pair: Pair) -> None:
    reader, owner, peer = pair
    mine = np.zeros(64, np.uint8)
    with owner.register(np.zeros(64, np.uint8), readable=True) as source, reader.register(mine):
        transfer = reader.write(peer, mine, source.span())
        with pytest.raises(kvferry.Error, match="not open for remote write") as refused:
            transfer.wait()
        assert refused.value.code == "permission_denied"
        assert transfer.poll() is not None and not transfer.poll()
        with pytest.raises(kvferry.Error) as unregistered:
            reader.read(peer, np.zeros(64, np.uint8), source.span())
        assert unregistered.value.code == "invalid_argument"
        with pytest.raises(kvferry.Error) as restarted:
            reader.read(peer, mine, source.span(), incarnation=1).wait()
        assert restarted.value.code == "peer_lost"
    assert pickle.loads(pickle.dumps(refused.value)).code == "permission_denied"


def test_notifications_come_with_and_without_data(pair: Pair) -> None:
    reader, owner, peer = pair
    mine = np.arange(64, dtype=np.uint8)
    theirs = np.zeros(64, np.uint8)
    with owner.register(theirs, writable=True) as target, reader.register(mine):
        reader.write(peer, mine, target.span(), notify=("done", b"\x00\xff")).wait()
        assert owner.notifications() == [("reader", "done", b"\x00\xff")]
        assert np.array_equal(mine, theirs)
    reader.notify(peer, "hello").wait()
    assert owner.notifications() == [kvferry.Notification("reader", "hello", b"")]


def test_transfers_can_be_awaited(pair: Pair) -> None:
    reader, owner, peer = pair
    theirs = np.random.default_rng(3).integers(0, 256, 1 << 20, np.uint8)
    mine = np.zeros(1 << 20, np.uint8)

    async def read_all(source: kvferry.Region) -> list[kvferry.Outcome]:
        piece = 1 << 14
        transfers = [
            reader.read(peer, mine[at : at + piece], source.span(at, piece)) for at in range(0, 1 << 20, piece)
        ]

        async def result(transfer: kvferry.Transfer) -> kvferry.Outcome:
            return await transfer

        outcomes = await asyncio.gather(*map(result, transfers))
        assert (await transfers[0]).ok, "once more, after its end"
        with pytest.raises(kvferry.Error):
            await reader.read(peer, mine, (999, 0, 1 << 20))
        return outcomes

    with owner.register(theirs, readable=True) as source, reader.register(mine):
        for _ in range(2):  # in one event loop after another
            mine[:] = 0
            assert all(asyncio.run(read_all(source)))
            assert np.array_equal(mine, theirs)


def test_cancelling_the_task_cancels_the_transfer(
    start_child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVFERRY_MISSED_HEARTBEATS", "1000")  # a child that is stopped for long is not lost
    child = start_child()
    with kvferry.Engine(fabrics=["tcp"]) as engine:
        mine = np.zeros(1 << 20, np.uint8)
        peer = engine.peer(child.target)
        peer.sync()
        with engine.register(mine):
            child.stop()
            transfer = engine.read(peer, mine, peer.regions()[0].span())

            async def impatient() -> None:
                async def wait() -> None:
                    await transfer

                await asyncio.wait_for(wait(), 0.05)

            with pytest.raises(asyncio.TimeoutError):
                asyncio.run(impatient())
            child.go_on()
            with pytest.raises(kvferry.Error) as cancelled:
                transfer.wait()
            assert cancelled.value.code == "cancelled"


def test_waiting_can_be_given_up_without_the_transfer(
    start_child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVFERRY_MISSED_HEARTBEATS", "1000")  # a child that is stopped for long is not lost
    child = start_child()
    with kvferry.Engine(fabrics=["tcp"]) as engine:
        mine = np.zeros(4096, np.uint8)
        peer = engine.peer(child.target)
        peer.sync()
        with engine.register(mine):
            child.stop()
            transfer = engine.read(peer, mine, peer.regions()[0].span(0, 4096))
            with pytest.raises(kvferry.Error) as impatient:
                transfer.wait(timeout=0.02)
            assert impatient.value.code == "deadline_exceeded" and not transfer.done()
            child.go_on()
            assert transfer.wait().bytes_done == 4096


def test_what_an_engine_tells(pair: Pair) -> None:
    reader, _, peer = pair
    peer.connect()
    told = json.loads(reader.describe())
    assert told["engine_id"] == reader.engine_id == "reader"
    assert told["peers"][0]["engine_id"] == "owner"
    assert "kvferry_transfers_total" in reader.metrics()


def test_a_closed_engine_refuses(pair: Pair) -> None:
    reader, _, peer = pair
    region = reader.register(bytearray(64))
    reader.close()
    reader.close()
    for call in (reader.describe, lambda: reader.peer("127.0.0.1:1"), lambda: reader.register(bytearray(8))):
        with pytest.raises(kvferry.Error, match="closed"):
            call()
    with pytest.raises(kvferry.Error):
        peer.connect()
    region.unregister()


def test_protocols_that_need_a_device_are_refused() -> None:
    with pytest.raises(kvferry.Error, match="tcp or auto"):
        kvferry.Engine(protocol="rdma")
    with pytest.raises(kvferry.Error, match="allow_open|ALLOW_OPEN"):
        kvferry.Engine("0.0.0.0:0")
    with kvferry.Engine(protocol="auto") as engine:
        assert json.loads(engine.describe())["fabrics"] == ["local", "tcp"]


def test_the_environment_is_read_and_arguments_go_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_ENGINE_ID", "from-environment")
    monkeypatch.setenv("KVFERRY_FABRICS", "tcp")
    with kvferry.Engine() as engine, kvferry.Engine(engine_id="given", fabrics=["local"]) as other:
        assert engine.engine_id == "from-environment"
        assert json.loads(engine.describe())["fabrics"] == ["tcp"]
        assert other.engine_id == "given"
        assert json.loads(other.describe())["fabrics"] == ["local"]


def test_a_secret_of_the_environment_keeps_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(secret: str) -> kvferry.Engine:
        file = tmp_path / secret[:4]
        file.write_text(secret)
        file.chmod(0o600)
        monkeypatch.setenv("KVFERRY_PSK_FILE", str(file))
        return kvferry.Engine(fabrics=["tcp"])

    with engine("ours" * 8) as owner, engine("ours" * 8) as friend, engine("else" * 8) as stranger:
        assert json.loads(owner.describe())["auth"] == "psk"
        friend.peer(owner.address).connect()
        with pytest.raises(kvferry.Error, match="secret"):
            stranger.peer(owner.address).connect()
    Path(os.environ["KVFERRY_PSK_FILE"]).chmod(0o644)
    with pytest.raises(kvferry.Error, match="others may use"):
        kvferry.Engine()
