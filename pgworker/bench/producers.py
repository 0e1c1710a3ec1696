"""Processes that do one thing over and over, all for the same time, each on a connection of its own."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from psycopg import Connection

from pgworker.bench.failure import BenchFailed
from pgworker.db.connect import connect
from pgworker.linux.fork import fork_child

_PATIENCE = 60.0  # seconds for all to be connected, and beyond the time they were given
_COUNT = struct.Struct("<Q")

Once = Callable[[Connection[Any]], object]
"""One thing: one transaction."""


def count_in_parallel(dsn: str, processes: int, seconds: float, once: Once) -> int:
    """How often all of them together did it. Processes, since threads would wait for each other's GIL.

    BenchFailed if one fails; its traceback is on stderr.
    """
    producers: list[_Producer] = []
    try:
        for _ in range(processes):
            producers.append(_Producer(dsn, seconds, once))  # noqa: PERF401  each may fail
        for producer in producers:
            producer.hear(1, within=_PATIENCE)
        for producer in producers:
            producer.release()
        return sum(_COUNT.unpack(producer.hear(_COUNT.size, within=seconds + _PATIENCE))[0] for producer in producers)
    finally:
        for producer in producers:
            producer.end()


class _Producer:
    """A child and our end of what it talks through: it says that it is connected, hears "go", and tells its count."""

    def __init__(self, dsn: str, seconds: float, once: Once) -> None:
        self._line, childs = socket.socketpair()
        with childs:
            self._pid = fork_child(
                lambda: _produce(childs, dsn, seconds, once),
                keep_fds={childs.fileno()},
                death_signal=signal.SIGKILL,
                blocked=(),
            )

    def hear(self, size: int, within: float) -> bytes:
        """So many bytes from it, within so many seconds."""
        self._line.settimeout(within)
        try:
            heard = self._line.recv(size)  # they were sent at once, and come so
        except (TimeoutError, ConnectionError):
            heard = b""
        if len(heard) < size:
            raise BenchFailed("a producer has failed, see above")
        return heard

    def release(self) -> None:
        with suppress(ConnectionError):  # `hear` says so
            self._line.sendall(b"!")

    def end(self) -> None:
        """Whatever it does, it is gone then."""
        self._line.close()
        os.kill(self._pid, signal.SIGKILL)  # ours until we have waited for it
        os.waitpid(self._pid, 0)


def _produce(line: socket.socket, dsn: str, seconds: float, once: Once) -> int:
    with connect(dsn, application_name="pgworker bench producer") as connection:
        once(connection)
        line.sendall(b".")
        line.recv(1)
        line.sendall(_COUNT.pack(_count(connection, seconds, once)))
    return 0


def _count(connection: Connection[Any], seconds: float, once: Once) -> int:
    done, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        once(connection)
        done += 1
    return done
