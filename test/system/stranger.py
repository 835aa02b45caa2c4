#!/usr/bin/env python3
"""Usage: stranger.py http|tls|random|silent|flood PORT

A program that knows nothing of kvferry. The first four listen on a port of this host where an engine was, and say
`ready`; `flood` is a client of an engine's port: HTTP requests, TLS hellos, random bytes and connections that say
nothing, as fast as they go, and says `flooding` after the first hundred.
"""

import http.server
import os
import socket
import ssl
import sys

HOST = "127.0.0.1"


def serve_http(port: int) -> None:
    with http.server.HTTPServer((HOST, port), http.server.SimpleHTTPRequestHandler) as server:
        print("ready", flush=True)
        server.serve_forever()


def serve(kind: str, port: int) -> None:
    listener = socket.create_server((HOST, port))
    print("ready", flush=True)
    held = []
    while True:
        connection, _ = listener.accept()
        held.append(connection)
        try:
            if kind == "tls":
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True)
            elif kind == "random":
                connection.sendall(os.urandom(100_000))
        except OSError:
            connection.close()


def call(number: int, port: int) -> socket.socket | None:
    connection = socket.create_connection((HOST, port))
    connection.settimeout(0.2)
    try:
        match number % 4:
            case 0:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: engine\r\n\r\n")
            case 1:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.wrap_socket(connection, server_hostname="engine")
            case 2:
                connection.sendall(os.urandom(1000))
            case _:
                return connection
    except OSError:
        pass
    connection.close()
    return None


def flood(port: int) -> None:
    silent = []
    number = 0
    while True:
        number += 1
        try:
            silent.append(call(number, port))
        except OSError:
            return  # the engine is gone
        del silent[:-2000]
        if number == 100:
            print("flooding", flush=True)


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "http":
        serve_http(port)
    elif kind == "flood":
        flood(port)
    else:
        serve(kind, port)


if __name__ == "__main__":
    main()
