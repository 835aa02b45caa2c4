"""Ports of this host that nobody listens on."""

import os
import socket


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Ports:
    """Gives out free ports from `first` on, none twice."""

    def __init__(self, first: int) -> None:
        self.next = first

    def take(self, count: int = 1) -> int:
        """The first of `count` free ports in a row."""
        while self.next + count < 65536:
            first = self.next
            taken = [port for port in range(first, first + count) if not is_free(port)]
            self.next = taken[-1] + 1 if taken else first + count
            if not taken:
                return first
        raise OSError("no free ports are left")


def own_ports() -> Ports:
    """For tests, which run side by side: each process looks elsewhere, and below the ports that the kernel gives to
    whoever connects (from 32768 on), or one could be taken between the look and the start of its server."""
    return Ports(10000 + os.getpid() % 500 * 40)
