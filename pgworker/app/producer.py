"""Where jobs go: onto the caller's connection, in his transaction, or onto one of the App's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.pq import PipelineStatus

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
from pgworker.lifecycle.transaction import all_or_none, all_or_none_async
from pgworker.model.job import JobRequest
from pgworker.observe.logs import fields, logger

_CHUNK: Final = 1000
_CHUNK_CHARACTERS: Final = 16 << 20

Item = TypeVar("Item")
Tell = Callable[[list[bytes]], object]

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
        return self._enqueue_groups(groups_of(requests), requests, target)

    async def enqueue_many_async(
        self, requests: Sequence[JobRequest], target: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_many` and `enqueue_async`."""
        return await self._enqueue_groups_async(groups_of(requests), requests, target)

    def enqueue_alike(
        self, template: JobRequest, payloads: Iterator[str], target: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_many`, jobs that differ in nothing but their payloads; these are made while the server stores
        those before. What is raised where one is made comes through, and none is stored."""
        return self._enqueue_groups(_groups_alike(template, payloads), repeat(template), target)

    async def enqueue_alike_async(
        self, template: JobRequest, payloads: Iterator[str], target: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_alike` and `enqueue_async`."""
        return await self._enqueue_groups_async(_groups_alike(template, payloads), repeat(template), target)

    def _enqueue_groups(
        self, groups: Iterator[Group], requests: Iterable[JobRequest], target: Target | None
    ) -> list[JobHandle[Any]]:
        """`requests`: those in the groups."""
        handles = _Handles(self._jobs, requests)
        if target is not None:
            check_target(target)
            _enqueue_on(driver_of(target), groups, handles.add)
        elif first := next(groups, None):
            with self._connections.connection() as connection:
                _enqueue_on(connection, chain([first], groups), handles.add)
        _log_enqueued((handle.id.bytes for handle in handles.made), requests)
        return handles.made

    async def _enqueue_groups_async(
        self, groups: Iterator[Group], requests: Iterable[JobRequest], target: Target | None
    ) -> list[JobHandle[Any]]:
        if target is None:
            return await asyncio.to_thread(self._enqueue_groups, groups, requests, None)
        check_target(target)
        handles = _Handles(self._jobs, requests)
        await _enqueue_on_async(await async_driver_of(target), groups, handles.add)
        _log_enqueued((handle.id.bytes for handle in handles.made), requests)
        return handles.made

    def _handle(self, request: JobRequest, job_id: bytes) -> JobHandle[Any]:
        _log_enqueued([job_id], [request])
        return JobHandle(job_id, request.task, self._jobs)


class _Handles:
    """Of the jobs that `requests` ask for, made as their ids become known."""

    def __init__(self, jobs: Jobs, requests: Iterable[JobRequest]) -> None:
        self.made: list[JobHandle[Any]] = []
        self._jobs = jobs
        self._requests = iter(requests)

    def add(self, ids: list[bytes]) -> None:
        """Those of the next requests, of which there are as many at the least."""
        jobs = self._jobs
        self.made += [JobHandle(job_id, request.task, jobs) for job_id, request in zip(ids, self._requests)]  # noqa: B905


def enqueue_requests(connection: Connection[Any], requests: Sequence[JobRequest]) -> list[UUID]:
    """Store jobs in the transaction that the connection is in, or all in one of their own; their ids, in order."""
    ids: list[bytes] = []
    _enqueue_on(connection, groups_of(requests), ids.extend)
    _log_enqueued(ids, requests)
    return [UUID(bytes=job_id) for job_id in ids]


def _store_job(driver: SyncDriver, request: JobRequest) -> bytes:
    connection = driver if isinstance(driver, Connection) else driver.connection
    with _Explained(connection):
        return enqueue_group(connection, [request])[0]


async def _store_job_async(driver: AsyncDriver, request: JobRequest) -> bytes:
    connection = driver if isinstance(driver, AsyncConnection) else driver.connection
    with _Explained(connection):
        return (await enqueue_group_async(connection, [request]))[0]


def _enqueue_on(driver: SyncDriver, groups: Iterator[Group], tell: Tell) -> None:
    """What is told means nothing if it fails."""
    connection = driver if isinstance(driver, Connection) else driver.connection
    ready = list(islice(groups, 2))  # what can't be stored is refused before anything is sent, if it is among them
    with _Explained(connection):
        if len(ready) == 1:
            tell(enqueue_group(connection, ready[0]))
        elif ready:
            with all_or_none(connection):
                enqueue_groups(connection, chain(ready, groups), tell)


async def _enqueue_on_async(driver: AsyncDriver, groups: Iterator[Group], tell: Tell) -> None:
    connection = driver if isinstance(driver, AsyncConnection) else driver.connection
    ready = list(islice(groups, 2))
    with _Explained(connection):
        if len(ready) == 1:
            tell(await enqueue_group_async(connection, ready[0]))
        elif ready:
            async with all_or_none_async(connection):
                await enqueue_groups_async(connection, chain(ready, groups), tell)


def groups_of(requests: Iterable[JobRequest]) -> Iterator[Sequence[JobRequest]]:
    """What one statement stores."""
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


def _log_enqueued(ids: Iterable[bytes], requests: Iterable[JobRequest]) -> None:
    if not log.isEnabledFor(logging.DEBUG):
        return
    for sent, request in zip(ids, requests):  # noqa: B905  of those alike any number can be asked for
        job, org = UUID(bytes=sent), {} if request.org_id is None else {"org": request.org_id}
        log.debug("enqueued", extra=fields("job_enqueued", job=job, task=request.task, queue=request.queue, **org))


class _Explained:
    """What PostgreSQL says against the jobs, or of a missing schema, as our errors. Others pass as they are.

    A class, as it is around every enqueue: a generator takes three times as long.
    """

    def __init__(self, connection: Connection[Any] | AsyncConnection[Any]) -> None:
        self._connection = connection
        self._is_alone = connection.pgconn.pipeline_status == PipelineStatus.OFF

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, psycopg.Error) or not error.sqlstate:
            return
        if not (self._is_alone or _is_ours(error)):
            return
        if error.sqlstate[:2] in ("22", "23"):  # data exceptions, violated constraints
            raise InvalidJob(f"PostgreSQL refused the job: {_complaint(error)}") from error
        if isinstance(told := explain(error, dsn_of(self._connection)), SchemaError):
            raise told from error


def _is_ours(error: psycopg.Error) -> bool:
    """Whether it is about a job. In a pipeline the driver raises what was wrong with any statement before, too."""
    return error.diag.schema_name == "pgworker" or "pgworker." in f"{error.diag.context} {error.diag.message_primary}"


def _complaint(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.UniqueViolation):
        return "one with its id exists already"
    if error.diag.constraint_name == "payload_check":
        return "its payload must be a JSON object and take at most 8 MiB as jsonb; store what is larger elsewhere"
    return error.diag.message_primary or str(error)
