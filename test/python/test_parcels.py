"""Parcels between processes: what is published is what is read, or the read says why not."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvferry
from conftest import PORTS
from kv_memory import BLOCKS, HEADS, LAYERS, ROW, TOKENS, Cache

HERE = Path(__file__).parent
THEIRS, MINE = [3, 1, 4, 15], [9, 2, 6, 5]


class Owner:
    def __init__(self, tp_size: int, tp_rank: int, base_port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "parcel_owner.py"), str(tp_size), str(tp_rank), str(base_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = str(self._line()["address"])

    def _line(self) -> Any:  # noqa: ANN401, whatever JSON has
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the owner has ended"
        return json.loads(line)

    def ask(self, question: str, **arguments: Any) -> Any:  # noqa: ANN401
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": question, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def released(self) -> Any:  # noqa: ANN401
        """The next that are told."""
        return eventually(lambda: self.ask("released"))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def eventually(look: Callable[[], Any]) -> Any:  # noqa: ANN401
    deadline = time.monotonic() + 60
    while not (seen := look()):
        assert time.monotonic() < deadline
    return seen


@pytest.fixture
def base_port() -> int:
    return PORTS.take(4)


@pytest.fixture
def start_owner(base_port: int) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start(tp_size: int = 1, tp_rank: int = 0) -> Owner:
        owners.append(Owner(tp_size, tp_rank, base_port))
        return owners[-1]

    yield start
    for owner in owners:
        owner.kill()


class Reader:
    """A decoder of one rank."""

    def __init__(self, fabric: str = "local", tp_size: int = 1, tp_rank: int = 0) -> None:
        self.engine = kvferry.Engine(engine_id=f"reader/{tp_rank}", fabrics=[fabric])
        self.cache = Cache(self.engine, kvferry.ParallelRank(tp_size=tp_size, tp_rank=tp_rank))
        self.parcels = kvferry.Parcels(self.engine)
        self.parcels.set_cache("decoder", self.cache.layout)

    def read(self, owners: list[Owner], transfer_id: str = "x", **more: Any) -> kvferry.ParcelReading:  # noqa: ANN401
        peers = [self.engine.peer(owner.address) for owner in owners]
        told: dict[str, Any] = {"fingerprint": "f", "group": "decoder", "expected_instance": "prefiller"}
        return self.parcels.read(transfer_id, peers, [MINE], **{"timeout": 60.0} | told | more)


def publish(owner: Owner, transfer_id: str = "x", **more: Any) -> Any:  # noqa: ANN401
    told = {"blocks": [THEIRS], "tokens": TOKENS * len(THEIRS), "fingerprint": "f"} | more
    return owner.ask("publish", transfer_id=transfer_id, **told)


@pytest.mark.parametrize("fabric", ["local", "tcp"])
def test_what_was_published_is_read_and_given_back(start_owner: Callable[..., Owner], fabric: str) -> None:
    owner, reader = start_owner(), Reader(fabric)
    assert publish(owner) is None
    assert owner.ask("status", transfer_id="x") == ["published", 0]
    outcome = reader.read([owner]).wait()
    assert outcome.ok and outcome.state == "accepted" and outcome.fabric == fabric
    assert (outcome.bytes, outcome.tokens) == (LAYERS * HEADS * 4 * TOKENS * ROW, 4 * TOKENS)
    assert reader.cache.holds(MINE, THEIRS, range(4 * TOKENS))
    assert owner.released() == [["x", "settled"]]


def test_what_is_here_already_is_left_alone(start_owner: Callable[..., Owner]) -> None:
    owner, reader = start_owner(), Reader()
    publish(owner)
    reader.read([owner], first_token=TOKENS, end_token=3 * TOKENS).wait()
    assert reader.cache.holds(MINE, THEIRS, range(TOKENS, 3 * TOKENS))
    untouched = [block for block in range(BLOCKS) if block not in MINE[1:3]]
    assert not reader.cache.memory[:, untouched].any()


def test_a_read_waits_for_what_is_announced_and_is_awaited(start_owner: Callable[..., Owner]) -> None:
    owner, reader = start_owner(), Reader()
    owner.ask("announce", transfer_id="x")

    async def read() -> kvferry.ParcelOutcome:
        reading = reader.read([owner])
        assert reading.wait_for(0.05) is None and not reading.done()
        publish(owner)
        return await reading

    assert asyncio.run(read()).ok
    assert reader.cache.holds(MINE, THEIRS, range(4 * TOKENS))


def test_refusals_have_a_name(start_owner: Callable[..., Owner]) -> None:
    owner, reader = start_owner(), Reader()
    publish(owner)
    other = reader.read([owner], fingerprint="of another model")
    with pytest.raises(kvferry.Error, match="fingerprint"):
        other.wait()
    outcome = other.poll()
    assert outcome is not None and not outcome and outcome.state != "accepted"
    restarted = reader.read([owner], transfer_id="y", expected_instance="that of yesterday")
    with pytest.raises(kvferry.Error) as gone:
        restarted.wait()
    assert gone.value.code == "gone"
    assert publish(owner)["error"] == "already_exists"
    assert not reader.cache.memory.any()


def test_withdrawn_and_cancelled_reads_end_at_once(start_owner: Callable[..., Owner]) -> None:
    owner, reader = start_owner(), Reader()
    for transfer_id in ("x", "y"):
        owner.ask("announce", transfer_id=transfer_id)
    withdrawn, cancelled = reader.read([owner], "x"), reader.read([owner], "y")
    owner.ask("withdraw", transfer_id="x")
    with pytest.raises(kvferry.Error) as gone:
        withdrawn.wait(30)
    assert gone.value.code == "gone"
    cancelled.cancel()
    outcome = cancelled.poll()
    assert outcome is not None and outcome.state == "cancelled"


def test_readers_release_and_leases_end(start_owner: Callable[..., Owner]) -> None:
    owner, reader = start_owner(), Reader()
    publish(owner)
    reader.parcels.release_at(reader.engine.peer(owner.address), "x")
    assert owner.released() == [["x", "released"]]
    publish(owner, "y", lease=0.05)
    assert owner.released() == [["y", "expired"]]
    with pytest.raises(kvferry.Error):
        reader.read([owner], "y").wait()


@pytest.mark.parametrize(("owner_ranks", "reader_ranks"), [(2, 1), (1, 2), (4, 2)])
def test_heads_are_dealt_out_anew(
    start_owner: Callable[..., Owner], base_port: int, owner_ranks: int, reader_ranks: int
) -> None:
    owners = [start_owner(owner_ranks, rank) for rank in range(owner_ranks)]
    for owner in owners:
        publish(owner)
    readers = [Reader(tp_size=reader_ranks, tp_rank=rank) for rank in range(reader_ranks)]
    readings = [
        reader.read([owners[tp] for _, tp in kvferry.owners_to_settle(reader.cache.rank, owner_ranks, 1)])
        for reader in readers
    ]
    assert all(reading.wait().ok for reading in readings)
    assert all(reader.cache.holds(MINE, THEIRS, range(4 * TOKENS)) for reader in readers)
    for owner in owners:
        assert owner.released() == [["x", "settled"]]


def test_bootstrap_tells_the_workers_and_releases(start_owner: Callable[..., Owner], base_port: int) -> None:
    owners = [start_owner(2, rank) for rank in range(2)]
    client = kvferry.BootstrapClient(timeout=30)
    base = f"http://127.0.0.1:{base_port}"

    def registered() -> list[kvferry.RegisteredWorker]:
        workers = client.workers(base)
        return workers if len(workers) == 2 else []

    workers = {worker.tp_rank: worker for worker in eventually(registered)}
    assert [workers[rank].address for rank in range(2)] == [owner.address for owner in owners]
    assert all(worker.engine_id == "prefiller" for worker in workers.values())
    for owner in owners:
        publish(owner)
    # It is pending where not all ranks have answered within a second and a half.
    assert eventually(lambda: client.release(base, "x", force=True) == "acknowledged")
    for owner in owners:
        assert owner.released() == [["x", "released"]]


def test_bootstrap_asks_for_its_token_and_speaks_tls(tmp_path: Path, base_port: int) -> None:
    authority, key, token = tmp_path / "authority.pem", tmp_path / "key.pem", tmp_path / "token"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=trial".split()
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(authority)]
    subprocess.run(made, check=True, capture_output=True)
    token.write_text("only for this test\n")
    for secret in (key, token):
        secret.chmod(0o600)
    reader = Reader()
    server = kvferry.BootstrapServer(
        reader.engine,
        "i",
        reader.cache.layout,
        base_port=base_port,
        token=f"@{token}",
        certificate_file=str(authority),
        key_file=str(key),
        ca_file=str(authority),
    )
    base = f"https://127.0.0.1:{server.port}"
    known = kvferry.BootstrapClient(timeout=30, token=f"@{token}", ca_file=str(authority))
    assert eventually(lambda: known.workers(base))[0].http == base
    assert known.release(base, "x", force=True) == "acknowledged"
    with pytest.raises(kvferry.Error) as refused:
        kvferry.BootstrapClient(timeout=30, ca_file=str(authority)).release(base, "x", force=True)
    assert refused.value.code == "permission_denied"
    with pytest.raises(kvferry.Error, match="trust"):
        kvferry.BootstrapClient().workers(base)
    server.close()


def test_a_closed_server_keeps_no_engine(base_port: int) -> None:
    """Which ends when it is closed, not when somebody forgets the server."""
    address = f"127.0.0.1:{PORTS.take()}"
    engine = kvferry.Engine(address)
    server = kvferry.BootstrapServer(engine, "i", Cache(engine, kvferry.ParallelRank()).layout, base_port=base_port)
    server.close()
    engine.close()
    with kvferry.Engine(address) as next_one:
        assert next_one.address == address
    server.close()


def test_parcels_end_with_their_engine() -> None:
    reader = Reader()
    reader.engine.close()
    with pytest.raises(kvferry.Error):
        reader.parcels.announce("x")
    assert reader.parcels.take_released() == []
