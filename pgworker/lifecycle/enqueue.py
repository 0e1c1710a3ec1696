"""Enqueue: job and queue row, in whatever transaction the connection is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor

from pgworker.db.adapters import OwnAsyncCursor, OwnCursor
from pgworker.db.arrays import number_array
from pgworker.lifecycle.transaction import in_time, pipeline
from pgworker.model.job import JobRequest
from pgworker.sql.load import query

_IN_ONE_TRIP = 16
"""Groups that are sent before their answers are read: one is made ready while the server stores the one before."""

_FIRST_ID = 24  # behind the five numbers of the array and the length of the first
_NEXT_ID = 20


@dataclass(frozen=True, slots=True)
class Alike:
    """Jobs that differ in nothing but their payloads: the `template` with each of these."""

    template: JobRequest
    payloads: Sequence[str]


Group = Sequence[JobRequest] | Alike
"""What one statement stores."""


def enqueue_jobs(connection: Connection[Any], group: Group) -> list[UUID]:
    """Store the jobs and return their ids in order. Commits only if the connection is in autocommit mode."""
    return [UUID(bytes=raw) for raw in enqueue_group(connection, group)]


def enqueue_group(connection: Connection[Any], group: Group) -> list[bytes]:
    """As `enqueue_jobs`. The ids are as they come, 16 bytes each: UUIDs take 0.3 µs each to make, and the collector of
    garbage as long, of the 6 µs that a job takes among many."""
    with in_time(connection):
        cursor = _send(connection, group)
    return _raw_ids(cursor.fetchone())


def enqueue_groups(connection: Connection[Any], groups: Iterable[Group], tell: Callable[[list[bytes]], object]) -> None:
    """As `enqueue_group`, a statement for each: all or none only in a transaction. `tell` gets the ids, in order and in
    pieces. While the server stores some groups the next one is asked for, and the ids of others are told."""
    unread: list[Cursor[Any]] = []
    remaining = iter(groups)
    for first in remaining:
        sent = []
        with pipeline(connection):
            for group in chain([first], islice(remaining, _IN_ONE_TRIP - 1)):
                with in_time(connection):
                    sent.append(_send(connection, group))
            tell(_ids(unread))
        unread = sent
    tell(_ids(unread))


async def enqueue_group_async(connection: AsyncConnection[Any], group: Group) -> list[bytes]:
    """As `enqueue_group`, on an asynchronous connection."""
    cursor = await _send_async(connection, group)
    return _raw_ids(await cursor.fetchone())


async def enqueue_groups_async(
    connection: AsyncConnection[Any], groups: Iterable[Group], tell: Callable[[list[bytes]], object]
) -> None:
    """As `enqueue_groups`, on an asynchronous connection."""
    unread: list[AsyncCursor[Any]] = []
    remaining = iter(groups)
    for first in remaining:
        sent = []
        async with connection.pipeline():
            for group in chain([first], islice(remaining, _IN_ONE_TRIP - 1)):
                sent.append(await _send_async(connection, group))  # noqa: PERF401  it awaits
            tell(await _ids_async(unread))
        unread = sent
    tell(await _ids_async(unread))


def _send(connection: Connection[Any], group: Group) -> Cursor[Any]:
    return OwnCursor(connection).execute(*_statement(group), binary=True)


async def _send_async(connection: AsyncConnection[Any], group: Group) -> AsyncCursor[Any]:
    return await OwnAsyncCursor(connection).execute(*_statement(group), binary=True)


def _ids(cursors: Iterable[Cursor[Any]]) -> list[bytes]:
    return [raw for cursor in cursors for raw in _raw_ids(cursor.fetchone())]


async def _ids_async(cursors: Iterable[AsyncCursor[Any]]) -> list[bytes]:
    return [raw for cursor in cursors for raw in _raw_ids(await cursor.fetchone())]


def _raw_ids(row: Any) -> list[bytes]:
    """Out of an array of uuid in PostgreSQL's binary format."""
    array = row[0]
    return [array[at : at + 16] for at in range(_FIRST_ID, len(array), _NEXT_ID)]


def _statement(group: Group) -> tuple[str, dict[str, Any]]:
    """The one that stores a group, and its parameters."""
    if isinstance(group, Alike):
        return query("enqueue_many"), _values(group.template) | {"payloads": group.payloads}
    if len(group) == 1:
        return query("enqueue_job"), _values(group[0])
    return query("enqueue_jobs"), _columns(group)


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


def _columns(requests: Sequence[JobRequest]) -> dict[str, object]:
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
