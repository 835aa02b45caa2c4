"""How peers find each other by name: over a metadata server, or not at all (P2PHANDSHAKE: names are addresses)."""

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

TIMEOUT = 5.0  # seconds of one request
MAX_BYTES = 65536  # of one value


class MetadataError(Exception):
    """The metadata server cannot say, and why."""


class Metadata(Protocol):
    def publish(self, name: str, address: str) -> None: ...
    def withdraw(self, name: str) -> None: ...
    def address_of(self, name: str) -> str: ...


class Handshake:
    """P2PHANDSHAKE: a peer's name is its address."""

    def publish(self, name: str, address: str) -> None:
        pass

    def withdraw(self, name: str) -> None:
        pass

    def address_of(self, name: str) -> str:
        return name


class HttpMetadata:
    """GET, PUT and DELETE of `<url>?key=...`, as Mooncake's own metadata server does. Keys and values are kvferry's."""

    def __init__(self, url: str) -> None:
        self._url = url
        # The server is a neighbour: proxies of the environment are for the way out.
        self._opener = build_opener(ProxyHandler({}))

    def publish(self, name: str, address: str) -> None:
        self._ask("PUT", name, json.dumps({"address": address}).encode())

    def withdraw(self, name: str) -> None:
        self._ask("DELETE", name)

    def address_of(self, name: str) -> str:
        try:
            value = json.loads(self._ask("GET", name))
        except ValueError as error:
            raise MetadataError(f"what {self._url} has for {name!r} is no JSON: {error}") from error
        address = value.get("address") if isinstance(value, Mapping) else None
        if not isinstance(address, str):
            raise MetadataError(f"what {self._url} has for {name!r} names no address")
        return address

    def _ask(self, method: str, name: str, body: bytes | None = None) -> bytes:
        url = f"{self._url}?key={quote('kvferry/engine/' + name, safe='')}"
        request = Request(url, data=body, method=method, headers={"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return bytes(answer.read(MAX_BYTES))
        except HTTPError as error:
            error.close()
            what = f"does not know {name!r}" if error.code == 404 else f"answered {error.code} to {method} of {name!r}"
            raise MetadataError(f"the metadata server {self._url} {what}") from error
        except (OSError, HTTPException) as error:
            raise MetadataError(f"the metadata server {self._url} cannot be asked: {error}") from error


def metadata_for(server: str, kind: str = "") -> Metadata:
    """Raises ValueError, naming the choices, for a server of another kind."""
    if server == "P2PHANDSHAKE" or kind == "P2PHANDSHAKE":
        return Handshake()
    url = server if "://" in server or not kind else f"{kind}://{server}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"metadata server {server!r} is not supported: use P2PHANDSHAKE or http://host:port/metadata")
    return HttpMetadata(url)
