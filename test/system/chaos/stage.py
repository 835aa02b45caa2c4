"""The processes of a chaos run: prefillers and their bootstrap servers on the left, the rest on the right."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from chain.client import BrokenAnswerError, fetch
from chain.metrics import Page
from chain.processes import Server, open_files, resident_bytes
from chaos.link import LEFT, RIGHT, Link

LEASE_S = 8  # of prefillers
PATIENCE_S = 20  # of the proxy, until a decoder's first byte
MODEL = ["--num-blocks", "512", "--max-model-len", "2048", "--drain-limit", "1s", "--request-timeout", "30s"]
# Both sizes of tensor parallelism on both sides, and a decoder for each fabric and each policy.
PREFILL_TP = [2, 1]
DECODERS = [
    ["--tp", "1", "--fabric", "local,tcp", "--kv-load-failure-policy", "fail"],
    ["--tp", "2", "--fabric", "tcp", "--kv-load-failure-policy", "recompute"],
]


@dataclass
class Kept:
    """What a process had when it was first seen at rest."""

    starts: int
    files: int
    memory: int


@dataclass
class Stage:
    programs: Path
    logs: Path
    link: Link
    prefillers: list[Server] = field(default_factory=list)
    bootstraps: list[Server] = field(default_factory=list)
    decoders: list[Server] = field(default_factory=list)
    proxies: list[Server] = field(default_factory=list)
    kept: dict[str, Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        proxy = ["--host", RIGHT, "--port", "8000", "--admin-host", RIGHT, "--admin-port", "8009"]
        proxy += ["--connector", "kvferry", "--lease", f"{PATIENCE_S}s", "--connect-timeout", "1s"]
        proxy += ["--stream-idle-timeout", "10s", "--health-interval", "200ms"]
        proxy += ["--slow-start", "0", "--drain-limit", "1s"]
        proxy += ["--policy", "round_robin", "--access-log", str(self.logs / "access.log")]
        for number, tp in enumerate(PREFILL_TP):
            bootstrap = 8998 + 10 * number
            self.bootstraps.append(
                self.server(f"bootstrap-{number}", "kvferry-bootstrap", LEFT, bootstrap, ["--host", LEFT])
            )
            flags = ["--role", "prefill", "--tp", str(tp), "--lease", f"{LEASE_S}s", "--kv-load-timeout", "8s"]
            flags += ["--bootstrap-url", f"http://{LEFT}:{bootstrap}"]
            self.prefillers.append(self.sim(f"prefill-{number}", LEFT, 8100 + number, flags))
            proxy += ["--prefill", self.prefillers[-1].url, str(bootstrap)]
        for number, more in enumerate(DECODERS):
            flags = ["--role", "decode", "--kv-load-timeout", "8s", *more]
            self.decoders.append(self.sim(f"decode-{number}", RIGHT, 8200 + number, flags))
            proxy += ["--decode", self.decoders[-1].url]
        self.proxies.append(self.server("proxy", "kvferry-proxy", RIGHT, 8000, proxy))
        single = ["--role", "both", "--no-handover", *MODEL, "--host", RIGHT]
        self.single = self.server("single", "kvferry-sim", RIGHT, 8300, single)

    def server(self, name: str, program: str, host: str, port: int, flags: list[str]) -> Server:
        command = [str(self.programs / program), *flags]
        if "--port" not in flags:
            command += ["--port", str(port)]
        side = self.link.left if host == LEFT else self.link.right
        return Server(name, command, f"http://{host}:{port}", self.logs / f"{name}.log", self.link.prefix(side))

    def sim(self, name: str, host: str, port: int, flags: list[str]) -> Server:
        return self.server(name, "kvferry-sim", host, port, [*flags, *MODEL, "--host", host, "--allow-open"])

    def servers(self) -> list[Server]:
        return [*self.bootstraps, *self.prefillers, *self.decoders, *self.proxies]

    @property
    def proxy(self) -> Server:
        return self.proxies[0]

    def find(self, name: str) -> Server:
        return next(server for server in self.servers() if server.name == name)

    def stop(self) -> None:
        for server in [*reversed(self.servers()), self.single]:
            server.kill()

    async def fetching(self) -> int:
        """Fetches of KV under way at this moment, at all decoders."""
        count = 0
        for server in self.decoders:
            try:
                page = Page.parse((await fetch(server.url + "/metrics", limit_s=2))[1])
                count += int(page.total("kvferry_sim_fetches"))
            except (OSError, TimeoutError, BrokenAnswerError):  # stopped or dead: nothing is known of it
                continue
        return count


LEFT_OVER = {
    "kvferry_sim_parcels": "parcels",
    "kvferry_sim_fetches": "fetches",
    "kvferry_sim_held_blocks": "held blocks",
    "kvferry_parcels": "parcels of engines",
    "kvferry_parcel_claims": "claims",
    "kvferry_proxy_parcels_pinned": "parcels that the proxy holds",
    "kvferry_proxy_requests_in_flight": "requests in the proxy",
}
# Descriptors and memory that a process may have beyond what it had when it was first seen at rest: a session with each
# peer (itself, three lanes, a pidfd, two shared files) from each of its ranks, and kept connections.
FILES_SLACK = 64
MEMORY_SLACK = 48 << 20


async def leftovers(server: Server) -> list[str]:
    """What this server holds although nothing is asked of it; empty when it is at rest."""
    if server.name.startswith("bootstrap"):
        return []
    page = Page.parse((await fetch(server.url + "/metrics", limit_s=2))[1])
    found = [f"{page.total(name):.0f} {what}" for name, what in LEFT_OVER.items() if page.total(name) > 0]
    used = page.total("kvferry_sim_blocks", state="used")
    if used > 0:
        found.append(f"{used:.0f} used blocks")
    blocks = sum(sample.value for sample in page.find("kvferry_sim_blocks"))
    if page.find("kvferry_sim_blocks") and blocks != float(MODEL[1]):
        found.append(f"{blocks:.0f} blocks in all instead of {MODEL[1]}")
    return [f"{server.name}: {what}" for what in found]


def growth(stage: Stage, server: Server) -> list[str]:
    """Descriptors and memory beyond what this process had when it was first at rest."""
    files, memory = open_files(server.pid), resident_bytes(server.pid)
    kept = stage.kept.get(server.name)
    if kept is None or kept.starts != server.starts:
        stage.kept[server.name] = Kept(server.starts, files, memory)
        return []
    found = []
    if files > kept.files + FILES_SLACK:
        found.append(f"{server.name}: {files} descriptors, {kept.files} before")
    if memory > kept.memory + MEMORY_SLACK:
        found.append(f"{server.name}: {memory >> 20} MiB, {kept.memory >> 20} before")
    return found


def why_not() -> str:
    """Empty where this can run."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return "" if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"
