"""Thousands of connections to one port, and nothing good in mind."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PORTS_EACH = 20_000
"""Connections of one source address, of the 28,000 ports that the kernel gives out."""

_PATIENCE = 10.0


@dataclass(slots=True)
class Opened:
    """`count` were made; `refused` were not, within the attacker's patience."""

    count: int = 0
    refused: int = 0


def say_nothing(_client: socket.socket) -> None: ...


def say_a_byte(client: socket.socket) -> None:
    client.send(b"G")


def ask_for_ever(client: socket.socket) -> None:
    client.send(b"GET /metrics HTTP/1.1\r\nX-Slow: ")


def ask_and_read_nothing(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.send(b"GET /metrics HTTP/1.1\r\n\r\n" * 20)


def promise_a_long_body(client: socket.socket) -> None:
    client.send(b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx")


def hang_up(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


MANNERS = (say_nothing, say_a_byte, ask_for_ever, ask_and_read_nothing, promise_a_long_body, hang_up)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextmanager
def connections(port: int, count: int) -> Iterator[Opened]:
    """Open so many at once to 127.0.0.1, from several source addresses if need be; each has one of the bad manners."""
    made = Opened()
    with room_for(count + 200), ExitStack() as clients:
        for number in range(count):
            client = clients.enter_context(socket.socket())
            client.settimeout(_PATIENCE)
            client.bind((f"127.0.0.{2 + number // _PORTS_EACH}", 0))
            try:
                client.connect(("127.0.0.1", port))
            except OSError:
                made.refused += 1
                continue
            made.count += 1
            with suppress(OSError):  # the oldest are hung up on
                MANNERS[number % len(MANNERS)](client)
        yield made


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """Let this process have so many descriptors; OSError where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, max(hard, descriptors)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
