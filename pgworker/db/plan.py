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


def plan_by_index(
    connection: Connection[Any],
    *,
    cache: str = "force_generic_plan",
    limit_ms: int | None = None,
    session: int | None = None,
) -> Cursor[Any]:
    """Send what `by_index` does, with a limit for each statement, None: as it is, to the end of the open transaction.

    Or of the `session` with this backend's pid, if it is there and nobody else's: if not, there is no row. The first
    column of the answer is when the server was started.
    """
    limit = None if limit_ms is None else str(limit_ms)
    return connection.execute(query("plan_by_index"), {"cache": cache, "limit_ms": limit, "pid": session})


def plan_for_these(connection: Connection[Any]) -> None:
    """To the end of the open transaction: each statement is planned anew, for full tables and the values it gets."""
    plan_by_index(connection, cache="force_custom_plan")


def _is_under_way(connection: Connection[Any]) -> bool:
    return (
        connection.info.pipeline_status != PipelineStatus.OFF
        or connection.info.transaction_status == TransactionStatus.INTRANS
    )
