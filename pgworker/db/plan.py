"""Plans: statements of the hot path go by index, whatever the statistics say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection, Cursor
from psycopg.pq import PipelineStatus, TransactionStatus

from pgworker.sql.load import query


@contextmanager
def by_index(connection: Connection[Any]) -> Iterator[None]:
    """Statements sent inside are planned for full tables, to the end of their transaction.

    In an open transaction or pipeline one statement more is sent. Otherwise what is sent inside becomes one transaction
    and one round trip of its own. No session state is left behind.
    """
    if _is_under_way(connection):
        plan_by_index(connection)
        yield
    else:
        with connection.pipeline():
            plan_by_index(connection)
            yield


def plan_by_index(connection: Connection[Any], *, limit_ms: int | None = None) -> Cursor[Any]:
    """Send what `by_index` does, and a limit for each statement of the open transaction; None: as it is. The last
    column of its answer is when the server started."""
    return connection.execute(query("plan_by_index"), {"limit_ms": None if limit_ms is None else str(limit_ms)})


def plan_for_these(cursor: Cursor[Any]) -> None:
    """To the end of the open transaction: each statement is planned anew, for full tables and the values it gets."""
    cursor.execute(query("plan_for_these"))


def _is_under_way(connection: Connection[Any]) -> bool:
    return (
        connection.info.pipeline_status != PipelineStatus.OFF
        or connection.info.transaction_status == TransactionStatus.INTRANS
    )
