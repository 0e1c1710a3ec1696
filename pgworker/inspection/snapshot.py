"""One consistent look at a database that others go on changing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection
from psycopg.pq import TransactionStatus

# Without JIT: these plans have so many parts that compiling them took 1 s, and running them 0.04 s. A look that nobody
# waits for any more, or whose process was stopped, must end: it keeps vacuum from every dead row of the queue. SET
# LOCAL, as a setting of the session doesn't reach the next transaction through a pooler.
_BEGIN = """\
set transaction isolation level repeatable read, read only;
set local jit = off;
set local idle_in_transaction_session_timeout = '10s';
select set_config('statement_timeout', '60s', true) where current_setting('statement_timeout') = '0'"""


@contextmanager
def snapshot(connection: Connection[Any]) -> Iterator[None]:
    """All reads in here see the same moment; inside another one, it is that one.

    The connection is in autocommit mode. psycopg.errors.QueryCanceled for a statement that takes longer than 60 s, or
    than whoever has set statement_timeout allows.
    """
    if connection.info.transaction_status is TransactionStatus.INTRANS:
        yield
        return
    with connection.transaction():
        connection.execute(_BEGIN)
        yield


def look_no_longer_than(connection: Connection[Any], seconds: float) -> None:
    """For the rest of a snapshot: psycopg.errors.QueryCanceled for a statement that takes longer."""
    connection.execute("select set_config('statement_timeout', %s, true)", [f"{seconds * 1000:.0f}"])


def go_by_index(connection: Connection[Any]) -> None:
    """For the rest of a snapshot: never read a whole table, though statistics of yesterday call it small."""
    connection.execute("set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off")
