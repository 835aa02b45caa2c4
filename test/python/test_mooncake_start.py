"""How mooncake.engine.TransferEngine starts: protocols, the environment, metadata servers, and memory."""

import gc
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import kvferry
from conftest import PORTS, Child
from metadata_server import running_metadata_server
from mooncake import engine as module
from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

MakeEngine = Callable[..., TransferEngine]


def test_the_module_has_mooncakes_names() -> None:
    assert (int(TransferOpcode.Read), int(TransferOpcode.Write)) == (0, 1)
    assert module.Read is TransferEngine.TransferOpcode.Read
    assert module.Write is TransferEngine.TransferOpcode.Write
    notify = TransferNotify("a", "b")
    assert (notify.name, notify.msg) == ("a", "b")
    assert (TransferNotify().name, TransferNotify().msg) == ("", "")
    for name in ("CUDA", "EFA", "HIP", "MNNVL", "MUSA", "INTRA_NVLINK"):
        assert getattr(module, f"SUPPORT_{name}") is False


def test_nothing_works_before_initialize_and_nothing_crashes() -> None:
    engine = TransferEngine()
    assert engine.get_rpc_port() == 0
    assert engine.get_engine() is None
    assert engine.transfer_sync_write("127.0.0.1:1", 1, 1, 1) == -1
    assert engine.transfer_submit_write("127.0.0.1:1", 1, 1, 1) == 0
    assert engine.register_memory(4096, 4096) == -1
    assert engine.allocate_managed_buffer(4096) == 0
    assert engine.get_notifies() == []
    assert engine.describe() == "{}"
    assert "initialize" in engine.last_error()


def test_it_starts_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    port = engine.get_rpc_port()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
    assert engine.get_rpc_port() == port
    assert engine.get_engine() is not None
    assert list(json.loads(engine.get_local_topology())) >= ["cpu:0"]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_rdma_without_a_device_falls_back_with_one_line(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    told = json.loads(make_engine("rdma").describe())
    assert len(warnings_of(caplog)) == 1 and "rdma" in warnings_of(caplog)[0]
    assert told["protocol"]["asked"] == "rdma" and "RDMA" in told["protocol"]["fallback"]
    assert told["fabrics"] == ["local", "tcp"]
    assert told["access"].startswith("open")
    caplog.clear()
    assert "fallback" not in json.loads(make_engine("tcp").describe())["protocol"]
    assert warnings_of(caplog) == []


def test_strict_protocol_makes_the_fallback_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_STRICT_PROTOCOL", "1")
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", "") == -1
    assert "tcp" in engine.last_error() and "auto" in engine.last_error()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "a refused start can be repeated"


def test_a_secret_of_the_environment_sets_the_mode(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "psk"
    secret.write_text("only for this test, " * 2)
    secret.chmod(0o600)
    monkeypatch.setenv("KVFERRY_AUTH", "psk")
    monkeypatch.setenv("KVFERRY_PSK_FILE", str(secret))
    told = json.loads(make_engine().describe())
    assert told["auth"] == "psk" and told["access"].startswith("psk")
    secret.chmod(0o640)
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
    assert "others may use" in engine.last_error()


def test_a_strict_engine_opens_no_memory(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFERRY_STRICT", "1")
    engine = make_engine()
    memory = np.zeros(4096, dtype=np.uint8)
    assert engine.register_memory(memory.ctypes.data, memory.nbytes) == -1
    assert "strict" in engine.last_error()
    assert json.loads(engine.describe())["fabrics"] == ["tcp"]


@pytest.mark.parametrize(
    ("server", "protocol", "name", "words"),
    [
        ("etcd://127.0.0.1:2379", "tcp", "127.0.0.1", "P2PHANDSHAKE"),
        ("redis://127.0.0.1:6379", "tcp", "127.0.0.1", "P2PHANDSHAKE"),
        ("127.0.0.1:2379", "tcp", "127.0.0.1", "P2PHANDSHAKE"),
        ("P2PHANDSHAKE", "nvlink", "127.0.0.1", "choose from"),
        ("P2PHANDSHAKE", "tcp", "no.such.host.invalid", "no.such.host.invalid"),
        ("P2PHANDSHAKE", "tcp", "127.0.0.1:port", "host:port"),
        ("http://127.0.0.1:1/metadata", "tcp", "127.0.0.1", "cannot be asked"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: str, protocol: str, name: str, words: str) -> None:
    engine = TransferEngine()
    assert engine.initialize(name, server, protocol, "") == -1
    assert words in engine.last_error() or name in engine.last_error()
    assert engine.get_rpc_port() == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MC_TRANSFER_TIMEOUT", "soon"),
        ("MC_TRANSFER_TIMEOUT", "-1"),
        ("MC_LOG_LEVEL", "LOUD"),
        ("MC_MIN_RPC_PORT", "70000"),
        ("KVFERRY_STRICT_PROTOCOL", "maybe"),
        ("KVFERRY_HEARTBEAT", "x"),
        ("KVFERRY_FABRICS", "pigeon"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == -1
    assert variable in engine.last_error() or value in engine.last_error()


def test_the_port_is_taken_from_the_range(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    low = PORTS.take(2)
    monkeypatch.setenv("MC_MIN_RPC_PORT", str(low))
    monkeypatch.setenv("MC_MAX_RPC_PORT", str(low + 1))
    ports = {make_engine().get_rpc_port() for _ in range(1)}
    assert ports <= {low, low + 1}
    engines = [TransferEngine(), TransferEngine(), TransferEngine()]
    started = [engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") for engine in engines]
    assert {engine.get_rpc_port() for engine in engines} <= {0, low, low + 1}
    assert -1 in started, "more engines than ports"


def test_the_bind_address_is_honoured(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MC_TCP_BIND_ADDRESS", "127.0.0.3")
    assert json.loads(make_engine().describe())["address"].startswith("127.0.0.3:")


def test_a_name_that_is_no_address_of_this_machine_listens_on_all(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = PORTS.take(4)
    monkeypatch.setenv("MC_MIN_RPC_PORT", str(low))
    monkeypatch.setenv("MC_MAX_RPC_PORT", str(low + 3))
    with mock.patch.object(kvferry, "Engine", wraps=kvferry.Engine) as made:
        assert json.loads(make_engine(name="192.0.2.7").describe())["address"].startswith("0.0.0.0:")
    tried = [call.args[0] for call in made.call_args_list]
    assert len([address for address in tried if address.startswith("192.0.2.7:")]) == 1, "one of its ports is enough"


def test_the_timeout_bounds_a_transfer(
    make_engine: MakeEngine, start_child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVFERRY_FABRICS", "tcp")
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "1")
    monkeypatch.setenv("KVFERRY_MISSED_HEARTBEATS", "1000")  # it is the deadline that ends it, also on a busy machine
    engine = make_engine()
    memory = np.zeros(4096, np.uint8)
    assert engine.register_memory(memory.ctypes.data, 4096) == 0
    child = start_child()
    # The deadline bounds the first contact too, which may take longer where the machine stands still.
    end = time.monotonic() + 60
    while engine.transfer_sync_read(child.target, memory.ctypes.data, child.address, 4096) != 0:
        assert time.monotonic() < end, engine.last_error()
    child.stop()
    started = time.monotonic()
    assert engine.transfer_sync_read(child.target, memory.ctypes.data, child.address, 4096) == -1
    number = engine.transfer_submit_write(child.target, memory.ctypes.data, child.address, 4096)
    status = 0
    assert number > 0
    while status == 0:
        status = engine.transfer_check_status(number)
    child.go_on()
    assert status == -2
    assert "deadline" in engine.last_error() or "heartbeat" in engine.last_error()
    assert time.monotonic() - started < 60, "1000 heartbeats are 1000 s"


# ---- metadata servers


def test_peers_find_each_other_by_name_over_http(make_engine: MakeEngine, start_child: Callable[..., Child]) -> None:
    with running_metadata_server() as server:
        engine = make_engine(metadata=server.url, name="127.0.0.1")
        child = start_child("localhost", server.url)
        assert set(server.values) == {"kvferry/engine/127.0.0.1", "kvferry/engine/localhost"}
        memory = np.zeros(4096, np.uint8)
        assert engine.register_memory(memory.ctypes.data, 4096) == 0
        assert engine.transfer_sync_read("localhost", memory.ctypes.data, child.address, 4096) == 0
        assert memory.any()
        assert engine.transfer_sync_read("nobody", memory.ctypes.data, child.address, 4096) == -1
        assert "does not know 'nobody'" in engine.last_error()
        # It comes back at another port, under its name.
        child.kill()
        again = start_child("localhost", server.url)
        assert engine.transfer_sync_read("localhost", memory.ctypes.data, again.address, 4096) == 0
        del engine
        gc.collect()
        assert set(server.values) == {"kvferry/engine/localhost"}


@pytest.mark.parametrize("submits", [False, True])
def test_a_peer_whose_former_host_is_silent_is_found_under_its_name(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, submits: bool
) -> None:
    monkeypatch.setenv("KVFERRY_CONNECT_TIMEOUT", "2s")
    with running_metadata_server() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        engine = make_engine(metadata=server.url, name="127.0.0.1")
        owner = make_engine(metadata=server.url, name="localhost")
        mine, theirs = engine.allocate_managed_buffer(64), owner.allocate_managed_buffer(64)
        assert engine.write_bytes_to_buffer(mine, b"moved", 5) == 0
        key = "kvferry/engine/localhost"
        now = server.values[key]
        server.values[key] = json.dumps({"address": f"127.0.0.1:{silent.getsockname()[1]}"}).encode()
        assert engine.transfer_sync_write("localhost", mine, theirs, 5) == -1
        server.values[key] = now
        if submits:
            batch = engine.transfer_submit_write("localhost", mine, theirs, 5)
            assert batch != 0, engine.last_error()
            assert engine.get_batch_transfer_status([batch]) == 0
        else:
            assert engine.transfer_sync_write("localhost", mine, theirs, 5) == 0, engine.last_error()
        assert owner.read_bytes_from_buffer(theirs, 5) == b"moved"


def test_a_metadata_server_that_talks_nonsense_is_an_error(make_engine: MakeEngine) -> None:
    with running_metadata_server() as server:
        engine = make_engine(metadata=server.url)
        server.values["kvferry/engine/x"] = b"{"
        server.values["kvferry/engine/y"] = b'["z"]'
        assert engine.send_probe("x") != 0 and "JSON" in engine.last_error()
        assert engine.send_probe("y") != 0 and "no address" in engine.last_error()


def test_initialize_ext_takes_the_kind_apart_from_the_address() -> None:
    with running_metadata_server() as server:
        engine = TransferEngine()
        assert engine.initialize_ext("127.0.0.1", server.url.removeprefix("http://"), "tcp", "", "http") == 0
        assert TransferEngine().initialize_ext("127.0.0.1", "127.0.0.1:2379", "tcp", "", "etcd") == -1


# ---- memory


def test_registration_has_mooncakes_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine()
    memory = np.zeros(16384, np.uint8)
    base = memory.ctypes.data
    assert engine.register_memory(base, 0) == -1
    assert engine.register_memory(base, 8192, "cpu:0") == 0
    assert engine.register_memory(base + 4096, 8192) == -7
    assert engine.unregister_memory(base + 1) == -3
    assert engine.unregister_memory(base) == 0
    assert engine.unregister_memory(base) == -3
    assert engine.batch_register_memory([base, base + 8192], [8192, 8192]) == 0
    assert engine.batch_unregister_memory([base, base + 8192, 4096]) == -3
    assert engine.batch_register_memory(np.array([base, base + 1]), [4096, 4096]) == -7, "all or none"
    assert engine.batch_register_memory([base], [4096, 1]) == -1
    assert engine.register_memory(base, 16384) == 0


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda x: np.array(x, np.uint64)], ids=str)
def test_a_batch_is_registered_and_unregistered_whole(make_engine: MakeEngine, kind: Callable[..., Any]) -> None:
    engine, peer = make_engine(), make_engine()
    memory, theirs = np.arange(8 * 4096, dtype=np.uint8), np.zeros(8 * 4096, np.uint8)
    base, far = memory.ctypes.data, theirs.ctypes.data
    pages = kind([base + page * 4096 for page in (6, 0, 4, 2)])
    assert engine.batch_register_memory(pages, kind([4096] * 4)) == 0, engine.last_error()
    assert peer.register_memory(far, theirs.nbytes) == 0
    assert json.loads(engine.describe())["regions"] == 4
    target = f"127.0.0.1:{peer.get_rpc_port()}"
    for page in range(8):
        status = engine.transfer_sync_write(target, base + page * 4096, far + page * 4096, 4096)
        assert status == (0 if page % 2 == 0 else -1), page
    assert all((theirs == memory).reshape(8, 4096)[page].all() for page in (0, 2, 4, 6))
    assert engine.batch_unregister_memory(pages) == 0
    assert json.loads(engine.describe())["regions"] == 0
    assert engine.batch_unregister_memory(pages) == -3
    assert engine.batch_register_memory([], []) == 0


@pytest.mark.parametrize(
    ("second", "length", "status"),
    [(4096, 0, -1), (0, 4096, -7), (-1, 4096, -1), (4096, 2**64, -1)],
    ids=["empty", "overlap", "negative", "too long"],
)
def test_nothing_of_a_batch_stays_when_one_in_its_middle_is_refused(
    make_engine: MakeEngine, second: int, length: int, status: int
) -> None:
    engine = make_engine()
    memory = np.zeros(4 * 4096, np.uint8)
    base = memory.ctypes.data
    wrong = base + second if second >= 0 else second
    assert engine.batch_register_memory([base, wrong, base + 8192], [4096, length, 4096]) == status
    assert json.loads(engine.describe())["regions"] == 0
    assert engine.unregister_memory(base) == -3
    assert engine.batch_register_memory([base, base + 4096, base + 8192], [4096] * 3) == 0, "nor is anything in its way"


def test_a_batch_is_registered_while_other_threads_run() -> None:
    """Were the interpreter's lock kept, the thread that counts would stand still in every one of the calls."""
    program = """
import kvferry, mmap, sys, threading, time
from kvferry._core import unregister_regions
sys.setswitchinterval(1000)  # a call that lets go of the lock lets the other thread run, and nothing else does
PAGES = 4096
memory = mmap.mmap(-1, PAGES * 4096)
ended, turns = [], []
def count():
    while not ended:
        turns.append(1)
        time.sleep(0)  # pause of a wait
with kvferry.Engine() as engine:
    with engine.register(memory) as whole:
        addresses = range(whole.address, whole.address + PAGES * 4096, 4096)
    thread = threading.Thread(target=count)
    thread.start()
    registering = unregistering = False
    deadline = time.monotonic() + 30
    while not (registering and unregistering) and time.monotonic() < deadline:
        before = len(turns)
        regions = engine.register_addresses(addresses, [4096] * PAGES)
        registering = registering or len(turns) > before
        before = len(turns)
        unregister_regions(regions)
        unregistering = unregistering or len(turns) > before
    ended.append(True)
    thread.join()
print(registering, unregistering)
"""
    assert run(program).stdout.split() == ["True", "True"]


def test_managed_buffers_hold_bytes(make_engine: MakeEngine) -> None:
    engine = make_engine()
    address = engine.allocate_managed_buffer(8192)
    assert address > 0
    assert engine.write_bytes_to_buffer(address + 100, b"some bytes and more", 10) == 0
    assert engine.read_bytes_from_buffer(address + 100, 12) == b"some bytes\0\0"
    assert engine.write_bytes_to_buffer(address + 8190, b"abc", 3) == -1
    assert engine.write_bytes_to_buffer(address, b"abc", 4) == -1
    assert engine.write_bytes_to_buffer(64, b"abc", 3) == -1
    for place, length in ((64, 4), (address, -1), (address + 8192, 1)):
        with pytest.raises(ValueError, match="not registered"):
            engine.read_bytes_from_buffer(place, length)
    assert engine.free_managed_buffer(address, 8192) == 0
    assert engine.free_managed_buffer(address, 8192) == -3
    assert engine.allocate_managed_buffer(0) == 0


# ---- quiet


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


START: Any = (
    "from mooncake.engine import TransferEngine as T; e = T(); "
    "assert e.initialize('127.0.0.1', 'P2PHANDSHAKE', {protocol!r}, '') == 0; b = e.allocate_managed_buffer(64); "
    "t = '127.0.0.1:%d' % e.get_rpc_port(); assert e.transfer_sync_write(t, b, b, 32) == 0"
)


def test_success_prints_nothing_and_a_fallback_one_line() -> None:
    quiet = run(START.format(protocol="tcp"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    fallen = run(START.format(protocol="rdma"))
    assert fallen.returncode == 0 and len(fallen.stderr.splitlines()) == 1 and "rdma" in fallen.stderr
    muted = run(START.format(protocol="rdma"), MC_LOG_LEVEL="ERROR")
    assert (muted.returncode, muted.stderr) == (0, "")
