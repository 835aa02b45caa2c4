"""A metadata server as small as Mooncake's contract allows: GET, PUT and DELETE of /metadata?key=."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class MetadataServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.values: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/metadata"


class Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def _key(self) -> str:
        return parse_qs(urlsplit(self.path).query)["key"][0]

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        value = self.server.values.get(self._key())
        if value is None:
            self._answer(404, b"metadata not found")
        else:
            self._answer(200, value)

    def do_PUT(self) -> None:
        self.server.values[self._key()] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_DELETE(self) -> None:
        self._answer(200 if self.server.values.pop(self._key(), None) is not None else 404)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_metadata_server() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
