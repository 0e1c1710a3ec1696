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
