"""Where jobs go: onto the caller's connection, in his transaction, or onto one of the App's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, Connection

from pgworker.app.connections import Connections
from pgworker.app.handle import JobHandle, Jobs
from pgworker.app.targets import AsyncDriver, SyncDriver, Target, async_driver_of, check_target, driver_of
from pgworker.db.connect import dsn_of, explain
from pgworker.errors import InvalidJob, SchemaError
from pgworker.lifecycle.enqueue import (
    Alike,
    Group,
    enqueue_group,
    enqueue_group_async,
    enqueue_groups,
    enqueue_groups_async,
)
from pgworker.model.job import JobRequest
from pgworker.observe.logs import fields, logger

_CHUNK: Final = 1000
_CHUNK_CHARACTERS: Final = 16 << 20

Item = TypeVar("Item")

log = logger("app.producer")


class Producer:
    """Enqueues the jobs of an App, and makes the handles for them.

    InvalidJob for a job that PostgreSQL refuses. Other errors are, on the caller's connection, those of psycopg as of
    any statement; on the App's own they are explained, see `Connections.connection`.
    """

    def __init__(self, connections: Connections, jobs: Jobs) -> None:
        self._connections = connections
        self._jobs = jobs

    @property
    def dsn(self) -> str:
        """Where jobs go that name no connection. ConfigurationError if nothing says so."""
        return self._connections.dsn

    def enqueue(self, request: JobRequest, target: Target | None = None) -> JobHandle[Any]:
        """Enqueue it in the transaction that `target` is in, or in one of its own."""
        if target is not None:
            return self._handle(request, _store_job(driver_of(target), request))
        with self._connections.connection() as connection:
            return self._handle(request, _store_job(connection, request))

    async def enqueue_async(self, request: JobRequest, target: Target | None = None) -> JobHandle[Any]:
        """As `enqueue`, on something asynchronous; without it in a thread, which goes on if the wait is cancelled."""
        if target is None:
            return await asyncio.to_thread(self.enqueue, request)
        return self._handle(request, await _store_job_async(await async_driver_of(target), request))

    def enqueue_many(self, requests: Sequence[JobRequest], target: Target | None = None) -> list[JobHandle[Any]]:
        """As `enqueue`, all of them or none."""
        return self._handles(requests, self._store(groups_of(requests), target))

    async def enqueue_many_async(
        self, requests: Sequence[JobRequest], target: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_many` and `enqueue_async`."""
        return self._handles(requests, await self._store_async(groups_of(requests), target))

    def enqueue_alike(
        self, template: JobRequest, payloads: Iterator[str], target: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_many`, jobs that differ in nothing but their payloads; these are made while the server stores
        those before. What is raised where one is made comes through, and none is stored."""
        ids = self._store(_groups_alike(template, payloads), target)
        return self._handles([template] * len(ids), ids)

    async def enqueue_alike_async(
        self, template: JobRequest, payloads: Iterator[str], target: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_alike` and `enqueue_async`."""
        ids = await self._store_async(_groups_alike(template, payloads), target)
        return self._handles([template] * len(ids), ids)

    def _store(self, groups: Iterator[Group], target: Target | None) -> list[bytes]:
        if target is not None:
            check_target(target)
            return enqueue_on(driver_of(target), groups)
        first = next(groups, None)
        if first is None:
            return []
        with self._connections.connection() as connection:
            return enqueue_on(connection, chain([first], groups))

    async def _store_async(self, groups: Iterator[Group], target: Target | None) -> list[bytes]:
        if target is None:
            return await asyncio.to_thread(self._store, groups, None)
        check_target(target)
        return await _enqueue_on_async(await async_driver_of(target), groups)

    def _handle(self, request: JobRequest, job_id: bytes) -> JobHandle[Any]:
        if log.isEnabledFor(logging.DEBUG):
            _log_enqueued([request], [job_id])
        return JobHandle(job_id, request.task, self._jobs)

    def _handles(self, requests: Sequence[JobRequest], ids: Sequence[bytes]) -> list[JobHandle[Any]]:
        if log.isEnabledFor(logging.DEBUG):
            _log_enqueued(requests, ids)
        jobs = self._jobs
        return [JobHandle(job_id, request.task, jobs) for job_id, request in zip(ids, requests, strict=True)]


def _store_job(driver: SyncDriver, request: JobRequest) -> bytes:
    connection = driver if isinstance(driver, Connection) else driver.connection
    try:
        return enqueue_group(connection, [request])[0]
    except psycopg.Error as error:
        _raise_explained(error, connection)
        raise


async def _store_job_async(driver: AsyncDriver, request: JobRequest) -> bytes:
    connection = driver if isinstance(driver, AsyncConnection) else driver.connection
    try:
        return (await enqueue_group_async(connection, [request]))[0]
    except psycopg.Error as error:
        _raise_explained(error, connection)
        raise


def enqueue_on(driver: SyncDriver, groups: Iterator[Group]) -> list[bytes]:
    """Store jobs in the transaction that `driver` is in, or all in one of their own; their ids in order, as bytes."""
    connection = driver if isinstance(driver, Connection) else driver.connection
    ready = _made_ready(groups, connection)
    try:
        if len(ready) == 1:
            return enqueue_group(connection, ready[0])
        with connection.transaction() if connection.autocommit else nullcontext():
            return enqueue_groups(connection, chain(ready, groups))
    except psycopg.Error as error:
        _raise_explained(error, connection)
        raise


async def _enqueue_on_async(driver: AsyncDriver, groups: Iterator[Group]) -> list[bytes]:
    connection = driver if isinstance(driver, AsyncConnection) else driver.connection
    ready = _made_ready(groups, connection)
    try:
        if len(ready) == 1:
            return await enqueue_group_async(connection, ready[0])
        async with connection.transaction() if connection.autocommit else nullcontext():
            return await enqueue_groups_async(connection, chain(ready, groups))
    except psycopg.Error as error:
        _raise_explained(error, connection)
        raise


def _made_ready(groups: Iterator[Group], connection: Connection[Any] | AsyncConnection[Any]) -> list[Group]:
    """Those to be made before anything is sent: all that go into a transaction of the caller's, which an error must
    leave as it was; else the first, and the second if there is one, as several need a transaction."""
    return list(islice(groups, 2) if connection.autocommit else groups)


def groups_of(requests: Iterable[JobRequest]) -> Iterator[Sequence[JobRequest]]:
    """For `enqueue_on`: what one statement stores."""
    return _chunks(requests, lambda request: len(request.payload))


def _groups_alike(template: JobRequest, payloads: Iterable[str]) -> Iterator[Alike]:
    return (Alike(template, chunk) for chunk in _chunks(payloads, len))


def _chunks(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """A thousand each, fewer if they are large: an array of PostgreSQL ends at 1 GB."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        own = size_of(item)
        if chunk and (len(chunk) == _CHUNK or size + own > _CHUNK_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += own
    if chunk:
        yield chunk


def _log_enqueued(requests: Sequence[JobRequest], ids: Sequence[bytes]) -> None:
    for request, job_id in zip(requests, ids, strict=True):
        org = {} if request.org_id is None else {"org": request.org_id}
        log.debug(
            "enqueued",
            extra=fields("job_enqueued", job=UUID(bytes=job_id), task=request.task, queue=request.queue, **org),
        )


def _raise_explained(error: psycopg.Error, connection: Connection[Any] | AsyncConnection[Any]) -> None:
    """What PostgreSQL says against the jobs, or of a missing schema, as our errors. Others pass as they are."""
    if (error.sqlstate or "")[:2] in ("22", "23"):  # data exceptions, violated constraints
        raise InvalidJob(f"PostgreSQL refused the job: {_complaint(error)}") from error
    if error.sqlstate and isinstance(told := explain(error, dsn_of(connection)), SchemaError):
        raise told from error


def _complaint(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.UniqueViolation):
        return "one with its id exists already"
    if error.diag.constraint_name == "payload_check":
        return "its payload must be a JSON object and take at most 8 MiB as jsonb; store what is larger elsewhere"
    return error.diag.message_primary or str(error)
