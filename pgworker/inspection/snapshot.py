"""One consistent look at a database that others go on changing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection


@contextmanager
def snapshot(connection: Connection[Any]) -> Iterator[None]:
    """All reads in here see the same moment. The connection must be in autocommit mode and outside a transaction.

    Without JIT: these plans have so many parts that compiling them took 1 s, and running them 0.04 s. SET LOCAL, as a
    setting of the session doesn't reach the next transaction through a pooler.
    """
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only; set local jit = off")
        yield


def look_no_longer_than(connection: Connection[Any], seconds: float) -> None:
    """For the rest of a snapshot: psycopg.errors.QueryCanceled for a statement that takes longer."""
    connection.execute("select set_config('statement_timeout', %s, true)", [f"{seconds * 1000:.0f}"])


def go_by_index(connection: Connection[Any]) -> None:
    """For the rest of a snapshot: never read a whole table, though statistics of yesterday call it small."""
    connection.execute("set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off")
