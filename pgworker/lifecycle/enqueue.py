"""Enqueue: job and queue row, in whatever transaction the connection is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import tuple_row

from pgworker.db.arrays import number_array
from pgworker.lifecycle.transaction import in_time
from pgworker.model.job import JobRequest
from pgworker.sql.load import query

_IN_ONE_TRIP = 8
"""Groups that are sent before their answers are read: one is made ready while the server stores the one before."""

Group = Sequence[JobRequest]


def enqueue_jobs(target: Connection[Any] | Cursor[Any], requests: Group) -> list[UUID]:
    """Store `requests` and return their ids in order. Commits only if `target` is in autocommit mode."""
    if not requests:
        return []
    connection = target if isinstance(target, Connection) else target.connection
    with in_time(connection):
        cursor = _send(connection, requests)
    return _ids(cursor.fetchall())


def enqueue_groups(target: Connection[Any] | Cursor[Any], groups: Sequence[Group]) -> list[UUID]:
    """As `enqueue_jobs`, a statement for each group: all or none only in a transaction."""
    if len(groups) == 1:
        return enqueue_jobs(target, groups[0])
    connection = target if isinstance(target, Connection) else target.connection
    ids: list[UUID] = []
    for first in range(0, len(groups), _IN_ONE_TRIP):
        cursors = []
        with connection.pipeline():
            for group in groups[first : first + _IN_ONE_TRIP]:
                with in_time(connection):
                    cursors.append(_send(connection, group))
        for cursor in cursors:
            ids += _ids(cursor.fetchall())
    return ids


async def enqueue_jobs_async(target: AsyncConnection[Any] | AsyncCursor[Any], requests: Group) -> list[UUID]:
    """As `enqueue_jobs`, on an asynchronous connection."""
    if not requests:
        return []
    connection = target if isinstance(target, AsyncConnection) else target.connection
    cursor = await _send_async(connection, requests)
    return _ids(await cursor.fetchall())


async def enqueue_groups_async(target: AsyncConnection[Any] | AsyncCursor[Any], groups: Sequence[Group]) -> list[UUID]:
    """As `enqueue_groups`, on an asynchronous connection."""
    if len(groups) == 1:
        return await enqueue_jobs_async(target, groups[0])
    connection = target if isinstance(target, AsyncConnection) else target.connection
    ids: list[UUID] = []
    for first in range(0, len(groups), _IN_ONE_TRIP):
        cursors = []
        async with connection.pipeline():
            for group in groups[first : first + _IN_ONE_TRIP]:
                cursors.append(await _send_async(connection, group))  # noqa: PERF401  it awaits
        for cursor in cursors:
            ids += _ids(await cursor.fetchall())
    return ids


def _send(connection: Connection[Any], requests: Group) -> Cursor[Any]:
    """With a cursor of our own class, whatever the user's connection makes, and its rows as they come."""
    return Cursor(connection, row_factory=tuple_row).execute(*_statement(requests))


async def _send_async(connection: AsyncConnection[Any], requests: Group) -> AsyncCursor[Any]:
    return await AsyncCursor(connection, row_factory=tuple_row).execute(*_statement(requests))


def _statement(requests: Group) -> tuple[str, dict[str, Any]]:
    """And its parameters."""
    if len(requests) == 1:
        return query("enqueue_job"), _values(requests[0])
    return query("enqueue_jobs"), _columns(requests)


def _ids(rows: Sequence[tuple[UUID]]) -> list[UUID]:
    return [id_ for (id_,) in rows]


def _values(request: JobRequest) -> dict[str, Any]:
    return {
        "task": request.task,
        "payload": request.payload,
        "queue": request.queue,
        "priority": request.priority,
        "run_at": request.run_at,
        "max_attempts": request.max_attempts,
        "timeout_ms": _milliseconds(request.timeout),
        "org_id": request.org_id,
        "headers": request.headers,
        "id": request.id,
    }


def _columns(requests: Group) -> dict[str, object]:
    return {
        "tasks": [request.task for request in requests],
        "payloads": [request.payload for request in requests],
        "queues": [request.queue for request in requests],
        "priorities": number_array(_plain(request.priority) for request in requests),
        "run_ats": [request.run_at for request in requests],
        "max_attempts": number_array(_plain(request.max_attempts) for request in requests),
        "timeouts_ms": number_array(_milliseconds(request.timeout) for request in requests),
        "org_ids": [request.org_id for request in requests],
        "headers": [request.headers for request in requests],
        "ids": [request.id for request in requests],
    }


def _plain(number: object) -> Any:
    """Of an IntEnum its number, not its name. What is no integer is the server's to refuse."""
    return int(number) if isinstance(number, int) else number


def _milliseconds(timeout: float | None) -> int | None:
    return None if timeout is None else round(timeout * 1000)
