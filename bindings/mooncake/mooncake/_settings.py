"""What the environment and the arguments of initialize() ask for. No I/O but the look-up of host names."""

import logging
import os
import random
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LOG_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}
# Mooncake's own range, where only one end of it is given.
DEFAULT_MIN_PORT, DEFAULT_MAX_PORT = 15000, 17000
TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Settings:
    """The variables that this package reads itself; docs/settings.md has all. KVFERRY_* go before MC_*."""

    timeout: float | None
    """Seconds of a transfer; None leaves it to kvferry (KVFERRY_TIMEOUT)."""
    log_level: int | None
    bind_address: str | None
    ports: tuple[int, int] | None
    listen: str | None
    strict_protocol: bool
    fabrics_named: bool
    engine_id: str | None

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> "Settings":
        """Raises ValueError for a value that makes no sense, naming the variable."""
        timeout = None if environment.get("KVFERRY_TIMEOUT") else _positive(environment, "MC_TRANSFER_TIMEOUT")
        level = None if environment.get("KVFERRY_LOG") else environment.get("MC_LOG_LEVEL")
        if level and level.upper() not in LOG_LEVELS:
            raise ValueError(f"MC_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
        return Settings(
            timeout=timeout,
            log_level=LOG_LEVELS[level.upper()] if level else None,
            bind_address=environment.get("MC_TCP_BIND_ADDRESS") or None,
            ports=_ports(environment),
            listen=environment.get("KVFERRY_LISTEN") or None,
            strict_protocol=_flag(environment, "KVFERRY_STRICT_PROTOCOL"),
            fabrics_named=bool(environment.get("KVFERRY_FABRICS")),
            engine_id=environment.get("KVFERRY_ENGINE_ID") or None,
        )


def _positive(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise ValueError(f"{name} must be a number of seconds, not {text!r}")
    return value


def _flag(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name) or "0"
    if text not in TRUE | FALSE:
        raise ValueError(f"{name} must be 0 or 1, not {text!r}")
    return text in TRUE


def _port(environment: Mapping[str, str], name: str, fallback: int) -> int:
    text = environment.get(name) or str(fallback)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"{name} must be a port, not {text!r}")
    return int(text)


def _ports(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if not environment.get("MC_MIN_RPC_PORT") and not environment.get("MC_MAX_RPC_PORT"):
        return None
    low = _port(environment, "MC_MIN_RPC_PORT", DEFAULT_MIN_PORT)
    high = _port(environment, "MC_MAX_RPC_PORT", max(low, DEFAULT_MAX_PORT))
    if low > high:
        raise ValueError(f"MC_MIN_RPC_PORT ({low}) is above MC_MAX_RPC_PORT ({high})")
    return low, high


def split_host(name: str) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]:port` or a bare IPv6 address into host and port, 0 for none."""
    if name.startswith("["):
        host, _, rest = name[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
    elif name.count(":") == 1:
        host, _, port = name.partition(":")
    else:
        host, port = name, ""
    if not host or (port and not (port.isdecimal() and int(port) < 65536)):
        raise ValueError(f"{name!r} is no host or host:port")
    return host, int(port or 0)


def join_host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def numeric_host(host: str) -> str:
    """Raises ValueError for a name that cannot be resolved."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ValueError(f"cannot resolve {host!r}: {error}") from error


def listen_addresses(settings: Settings, host: str, port: int) -> Iterator[str]:
    """The addresses to listen on, to be tried in this order until one is free: the named host's, and all addresses of
    the machine where that is not one of its own (behind a translation of addresses)."""
    if settings.listen:
        yield settings.listen
        return
    numeric = numeric_host(settings.bind_address or host)
    ports = [port]
    if not port and settings.ports:
        ports = list(range(settings.ports[0], settings.ports[1] + 1))
        # Engines that start together do not all try the same ports in the same order.
        first = random.Random(os.getpid()).randrange(len(ports))
        ports = ports[first:] + ports[:first]
    hosts = [numeric] if settings.bind_address else [numeric, "::" if ":" in numeric else "0.0.0.0"]
    for candidate in hosts:
        for one in ports:
            yield join_host(candidate, one)
