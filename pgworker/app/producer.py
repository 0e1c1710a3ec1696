"""Where jobs go: onto the caller's connection, in his transaction, or onto one of the App's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, Connection

from pgworker.app.connections import Connections
from pgworker.app.handle import JobHandle, Jobs
from pgworker.app.targets import AsyncDriver, Driver, SyncDriver, Target, async_driver_of, check_target, driver_of
from pgworker.db.connect import dsn_of, explain
from pgworker.errors import InvalidJob, SchemaError
from pgworker.lifecycle.enqueue import enqueue_groups, enqueue_groups_async
from pgworker.model.job import JobRequest
from pgworker.observe.logs import fields, logger

_CHUNK: Final = 1000
_CHUNK_CHARACTERS: Final = 16 << 20

Chunk = Sequence[JobRequest]

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

    def enqueue(self, requests: Sequence[JobRequest], target: Target | None = None) -> list[JobHandle[Any]]:
        """Enqueue all of them or none: in the transaction that `target` is in, or in one of their own."""
        if target is not None:
            check_target(target)
            return self._handles(requests, enqueue_on(driver_of(target), requests))
        if not requests:
            return []
        with self._connections.connection() as connection:
            return self._handles(requests, enqueue_on(connection, requests))

    async def enqueue_async(self, requests: Sequence[JobRequest], target: Target | None = None) -> list[JobHandle[Any]]:
        """As `enqueue`, on something asynchronous; without it in a thread, which goes on if the wait is cancelled."""
        if target is None:
            return await asyncio.to_thread(self.enqueue, requests)
        check_target(target)
        return self._handles(requests, await _enqueue_async(await async_driver_of(target), requests))

    def _handles(self, requests: Sequence[JobRequest], ids: Sequence[UUID]) -> list[JobHandle[Any]]:
        jobs = self._jobs
        return [JobHandle(job_id, request.task, jobs) for job_id, request in zip(ids, requests, strict=True)]


def enqueue_on(driver: SyncDriver, requests: Sequence[JobRequest]) -> list[UUID]:
    """Store jobs in the transaction that `driver` is in, or all in one of their own; their ids, in order."""
    chunks = list(_chunks(requests))
    with _refusals(driver), _together(driver, chunks):
        ids = enqueue_groups(driver, chunks)
    _log_enqueued(requests, ids)
    return ids


async def _enqueue_async(driver: AsyncDriver, requests: Sequence[JobRequest]) -> list[UUID]:
    chunks = list(_chunks(requests))
    with _refusals(driver):
        async with _together_async(driver, chunks):
            ids = await enqueue_groups_async(driver, chunks)
    _log_enqueued(requests, ids)
    return ids


def _log_enqueued(requests: Sequence[JobRequest], ids: Sequence[UUID]) -> None:
    if not log.isEnabledFor(logging.DEBUG):
        return
    for request, job_id in zip(requests, ids, strict=True):
        org = {} if request.org_id is None else {"org": request.org_id}
        log.debug("enqueued", extra=fields("job_enqueued", job=job_id, task=request.task, queue=request.queue, **org))


def _chunks(requests: Sequence[JobRequest]) -> Iterator[Chunk]:
    """A thousand each, fewer if they are large: an array of PostgreSQL ends at 1 GB."""
    chunk: list[JobRequest] = []
    size = 0
    for request in requests:
        if chunk and (len(chunk) == _CHUNK or size + len(request.payload) > _CHUNK_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(request)
        size += len(request.payload)
    if chunk:
        yield chunk


def _together(driver: SyncDriver, chunks: Sequence[Chunk]) -> AbstractContextManager[object]:
    """A transaction if several statements would commit one by one. Never in the way of the caller's own."""
    connection = driver if isinstance(driver, Connection) else driver.connection
    return connection.transaction() if connection.autocommit and len(chunks) > 1 else nullcontext()


def _together_async(driver: AsyncDriver, chunks: Sequence[Chunk]) -> AbstractAsyncContextManager[object]:
    connection = driver if isinstance(driver, AsyncConnection) else driver.connection
    return connection.transaction() if connection.autocommit and len(chunks) > 1 else nullcontext()


@contextmanager
def _refusals(driver: Driver) -> Iterator[None]:
    """What PostgreSQL says against the jobs, or of a missing schema, as our errors. Others pass as they are."""
    try:
        yield
    except psycopg.Error as error:
        if (error.sqlstate or "")[:2] in ("22", "23"):  # data exceptions, violated constraints
            raise InvalidJob(f"PostgreSQL refused the job: {_complaint(error)}") from error
        connection = driver if isinstance(driver, Connection | AsyncConnection) else driver.connection
        if error.sqlstate and isinstance(told := explain(error, dsn_of(connection)), SchemaError):
            raise told from error
        raise


def _complaint(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.UniqueViolation):
        return "one with its id exists already"
    if error.diag.constraint_name == "payload_check":
        return "its payload must be a JSON object and take at most 8 MiB as jsonb; store what is larger elsewhere"
    return error.diag.message_primary or str(error)
