"""Enqueue: job and queue row, in whatever transaction the connection is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor

from pgworker.lifecycle.transaction import in_time
from pgworker.model.job import JobRequest
from pgworker.sql.load import query


def enqueue_jobs(target: Connection[Any] | Cursor[Any], requests: Sequence[JobRequest]) -> list[UUID]:
    """Store `requests` and return their ids in order. Commits only if `target` is in autocommit mode."""
    if not requests:
        return []
    connection = target if isinstance(target, Connection) else target.connection
    with Cursor(connection, row_factory=_first) as cursor:  # whatever cursor class the user's connection makes
        with in_time(connection):
            cursor.execute(query("enqueue_jobs"), _columns(requests))
        ids: list[UUID] = cursor.fetchall()[0]
        return ids


async def enqueue_jobs_async(
    target: AsyncConnection[Any] | AsyncCursor[Any], requests: Sequence[JobRequest]
) -> list[UUID]:
    """As `enqueue_jobs`, on an asynchronous connection."""
    if not requests:
        return []
    connection = target if isinstance(target, AsyncConnection) else target.connection
    async with AsyncCursor(connection, row_factory=_first) as cursor:
        await cursor.execute(query("enqueue_jobs"), _columns(requests))
        ids: list[UUID] = (await cursor.fetchall())[0]
        return ids


def _first(_cursor: Any) -> Any:
    """The first column of each row, whatever row factory the user's connection has."""
    return lambda values: values[0]


def _columns(requests: Sequence[JobRequest]) -> dict[str, list[Any]]:
    return {
        "tasks": [request.task for request in requests],
        "payloads": [request.payload for request in requests],
        "queues": [request.queue for request in requests],
        "priorities": [request.priority for request in requests],
        "run_ats": [request.run_at for request in requests],
        "max_attempts": [request.max_attempts for request in requests],
        "timeouts_ms": [None if request.timeout is None else round(request.timeout * 1000) for request in requests],
        "org_ids": [request.org_id for request in requests],
        "headers": [request.headers for request in requests],
        "ids": [request.id for request in requests],
    }
