"""The command lines of a whole chain: prefillers, decoders, the proxy, and one server that does it all."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from chain.client import fetch
from chain.metrics import Page
from chain.ports import Ports
from chain.processes import Server, StartError


@dataclass
class Shape:
    """What a chain consists of."""

    prefill_tp: list[int] = field(default_factory=lambda: [1, 1])
    decode_tp: list[int] = field(default_factory=lambda: [1, 1])
    fabrics: str = ""  # empty: the best that there is
    model: list[str] = field(default_factory=list)  # further flags of all model servers
    prefill: list[str] = field(default_factory=list)
    decode: list[str] = field(default_factory=list)
    proxy: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """The processes of one chain on this host, and their addresses."""

    programs: Path
    logs: Path
    shape: Shape
    proxy_port: int
    admin_port: int
    ports: Ports
    bootstrap_ports: Ports | None = None  # elsewhere than the servers' own
    host: str = "127.0.0.1"
    prefillers: list[Server] = field(default_factory=list)
    decoders: list[Server] = field(default_factory=list)
    proxy: Server | None = None
    single: Server | None = None

    def __post_init__(self) -> None:
        bootstraps = []
        for number, tp in enumerate(self.shape.prefill_tp):
            base = (self.bootstrap_ports or self.ports).take(tp)
            bootstraps.append(base)
            flags = ["--bootstrap-port", str(base), *self.shape.prefill]
            self.prefillers.append(self.model_server(f"prefill-{number}", "prefill", tp, flags))
        for number, tp in enumerate(self.shape.decode_tp):
            self.decoders.append(self.model_server(f"decode-{number}", "decode", tp, self.shape.decode))
        self.single = self.model_server("single", "both", 1, ["--no-handover"])
        self.proxy = self.proxy_server(bootstraps)

    def model_server(self, name: str, role: str, tp: int, flags: list[str]) -> Server:
        port = self.ports.take()
        command = [str(self.programs / "kvferry-sim"), "--role", role, "--host", self.host, "--port", str(port)]
        command += ["--tp", str(tp), *self.shape.model, *flags]
        if self.shape.fabrics and role != "both":
            command += ["--fabric", self.shape.fabrics]
        return Server(name, command, f"http://{self.host}:{port}", self.logs / f"{name}.log")

    def proxy_server(self, bootstraps: list[int]) -> Server:
        command = [str(self.programs / "kvferry-proxy"), "--host", self.host, "--port", str(self.proxy_port)]
        command += ["--admin-host", self.host, "--admin-port", str(self.admin_port), "--connector", "kvferry"]
        for server, bootstrap in zip(self.prefillers, bootstraps, strict=True):
            command += ["--prefill", server.url, str(bootstrap)]
        for server in self.decoders:
            command += ["--decode", server.url]
        command += ["--access-log", str(self.logs / "access.log"), "--debug-headers", *self.shape.proxy]
        return Server("proxy", command, f"http://{self.host}:{self.proxy_port}", self.logs / "proxy.log")

    def servers(self) -> list[Server]:
        """All of them, in the order in which they are started."""
        assert self.single is not None
        assert self.proxy is not None
        return [*self.prefillers, *self.decoders, self.single, self.proxy]

    async def start(self, limit_s: float = 90.0) -> None:
        """Starts all, and returns when the proxy would use every one of them."""
        for server in self.servers():
            server.start()
        await asyncio.gather(*(server.ready(limit_s) for server in self.servers()))
        assert self.proxy is not None
        end = time.monotonic() + limit_s
        backends = len(self.prefillers) + len(self.decoders)
        while (await metrics_of(self.proxy)).total("kvferry_proxy_backend_usable") < backends:
            if time.monotonic() > end:
                raise StartError(f"the proxy does not find all backends:\n{self.proxy.last_words()}")
            await asyncio.sleep(0.05)  # pause of a wait

    def stop(self) -> dict[str, int]:
        """Ends all, those first that send to others; exit status by name."""
        return {server.name: server.stop() for server in reversed(self.servers())}


async def metrics_of(server: Server) -> Page:
    _, text = await fetch(server.url + "/metrics")
    return Page.parse(text)
