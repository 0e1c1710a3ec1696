"""Processes that do one thing over and over, all for the same time, each on a connection of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from psycopg import Connection

from pgworker.bench.failure import BenchFailed
from pgworker.db.connect import connect

_PATIENCE = 60.0  # seconds for all to be connected

Once = Callable[[Connection[Any]], object]
"""One thing: one transaction."""


def count_in_parallel(dsn: str, processes: int, seconds: float, once: Once) -> int:
    """How often all of them together did it. Processes, since threads would wait for each other's GIL.

    BenchFailed if one fails; its traceback is on stderr.
    """
    forking = get_context("fork")
    barrier, counts = forking.Barrier(processes), forking.SimpleQueue()

    def produce() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
        try:
            with connect(dsn, application_name="pgworker bench producer") as connection:
                once(connection)
                barrier.wait(_PATIENCE)
                counts.put(_count(connection, seconds, once))
        except BaseException:
            barrier.abort()
            raise

    children = [forking.Process(target=produce, daemon=True) for _ in range(processes)]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join()
    finally:
        for child in children:
            if child.pid is not None:
                child.kill()
    if any(child.exitcode for child in children):
        raise BenchFailed("a producer has failed, see above")
    return sum(counts.get() for _ in children)


def _count(connection: Connection[Any], seconds: float, once: Once) -> int:
    done, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        once(connection)
        done += 1
    return done
