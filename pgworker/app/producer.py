"""Where jobs go: onto the caller's connection, in his transaction, or onto the few connections of an App's own.

The App's own are psycopg_pool's, with what it leaves to its callers: one pool per process, since a forked child must
not touch its parent's sockets; the reason when no connection comes; and no log lines about what is raised anyway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg_pool import ConnectionPool, PoolTimeout

from pgworker.db.connect import conninfo, explain
from pgworker.errors import DatabaseUnavailable, InvalidJob, PgworkerError, SchemaError
from pgworker.lifecycle.enqueue import enqueue_jobs, enqueue_jobs_async
from pgworker.model.job import JobRequest

SyncTarget = Connection[Any] | Cursor[Any]
AsyncTarget = AsyncConnection[Any] | AsyncCursor[Any]
Target = SyncTarget | AsyncTarget

MAX_CONNECTIONS: Final = 4
PATIENCE: Final = 10.0
"""Seconds that an enqueue waits for a connection: a restart of PostgreSQL fits in."""

_CHUNK: Final = 1000
_CHUNK_CHARACTERS: Final = 16 << 20
_NAME: Final = "pgworker producer"
_SLICE: Final = 0.5
"""Seconds between two looks at why no connection has come."""

Chunk = Sequence[JobRequest]


def check_target(target: object) -> None:
    """TypeError unless jobs can be enqueued on `target`."""
    if not isinstance(target, Connection | Cursor | AsyncConnection | AsyncCursor):
        raise TypeError(
            f"jobs go through a psycopg connection or cursor, not {type(target).__qualname__}; "
            "pass the driver's connection that is under it"
        )


def enqueue_on(target: Target, requests: Sequence[JobRequest]) -> list[UUID]:
    """Enqueue in the transaction that `target` is in, or all in one of its own if it is in autocommit mode.

    InvalidJob for a job that PostgreSQL refuses; other errors are psycopg's, as of any statement on this connection.
    """
    if isinstance(target, AsyncConnection | AsyncCursor):
        raise TypeError("this connection is asynchronous: use `await ….enqueue_async()`")
    chunks = list(_chunks(requests))
    with _refusals(target), _together(target, chunks):
        return [job_id for chunk in chunks for job_id in enqueue_jobs(target, chunk)]


async def enqueue_on_async(target: Target, request: JobRequest) -> UUID:
    """As `enqueue_on`, for one job on an asynchronous connection."""
    if isinstance(target, Connection | Cursor):
        raise TypeError("this connection is synchronous: use `.enqueue()`")
    with _refusals(target):
        return (await enqueue_jobs_async(target, [request]))[0]


class Producer:
    """The connections of an App's own: opened when they are first needed, at most four, for all threads.

    `dsn` is asked then. In a forked child they are opened anew. After `close()` the next enqueue opens them again.
    """

    def __init__(self, dsn: Callable[[], str]) -> None:
        self._dsn = dsn
        # By process id. A parent's stay here untouched: even to forget them would close them.
        self._pools: dict[int, _Pool] = {}
        self._locks: dict[int, threading.Lock] = {}

    def enqueue(self, requests: Sequence[JobRequest]) -> list[UUID]:
        """Enqueue in a transaction of its own and return the ids in order.

        InvalidJob for a job that PostgreSQL refuses; ConfigurationError for what only the user can mend;
        DatabaseUnavailable if there is no connection within ten seconds, or it breaks on the way: then nobody knows
        whether the jobs were stored.
        """
        if not requests:
            return []
        pool = self._open()
        with pool.connection() as connection:
            try:
                return enqueue_on(connection, requests)
            except psycopg.Error as error:
                raise explain(error, pool.dsn) from error

    async def enqueue_async(self, request: JobRequest) -> UUID:
        """As `enqueue`, for one job, in a thread. Cancelling the wait doesn't stop the enqueue."""
        return (await asyncio.to_thread(self.enqueue, [request]))[0]

    def close(self) -> None:
        """Close what this process has opened."""
        with self._lock():
            pool = self._pools.pop(os.getpid(), None)
        if pool:
            pool.close()

    def _open(self) -> _Pool:
        if pool := self._pools.get(os.getpid()):
            return pool
        with self._lock():
            pool = self._pools.get(os.getpid())
            if pool is None:
                pool = self._pools[os.getpid()] = _Pool(self._dsn())
                weakref.finalize(self, pool.close)  # at exit too: threads that wait then would hold it up
            return pool

    def _lock(self) -> threading.Lock:
        """One per process: another thread may have held the parent's while it forked."""
        return self._locks.setdefault(os.getpid(), threading.Lock())


class _Pool:
    """One process's connections to `dsn`."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._pid = os.getpid()
        self._failure: tuple[float, PgworkerError] | None = None
        logging.getLogger("psycopg.pool").addFilter(_is_foreign)
        self._connections = ConnectionPool(
            conninfo(dsn, _NAME),
            connection_class=_Connection,
            # A pooler in transaction mode keeps no prepared statements.
            kwargs={"failed": self._note, "autocommit": True, "prepare_threshold": None},
            check=self._check,
            name=_NAME,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            reconnect_timeout=0,  # who waits asks again, so nothing goes on in the background when nobody does
            num_workers=1,
            open=True,
        )

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        connection = self._checkout()
        try:
            yield connection
        finally:
            self._connections.putconn(connection)

    def close(self) -> None:
        if os.getpid() == self._pid:
            self._connections.close()

    def _checkout(self) -> _Connection:
        begun = time.monotonic()
        while True:
            try:
                return self._connections.getconn(timeout=_SLICE)
            except PoolTimeout:  # noqa: PERF203  waiting is what this loop is for
                self._give_up(begun)
            except psycopg.Error as error:
                raise explain(error, self.dsn) from error

    def _give_up(self, begun: float) -> None:
        """Raise why there is no connection, if waiting any longer makes no sense."""
        failed_at, failure = self._failure or (0.0, None)
        known = failure if failed_at >= begun else None
        outage = known is None or isinstance(known, DatabaseUnavailable)
        if outage and time.monotonic() - begun < PATIENCE:
            return
        busy = f"The App's {MAX_CONNECTIONS} connections were all busy for {PATIENCE:.0f} s. Enqueue in fewer threads."
        raise known or DatabaseUnavailable(busy)

    def _note(self, error: psycopg.Error | OSError) -> None:
        self._failure = time.monotonic(), explain(error, self.dsn)

    def _check(self, connection: _Connection) -> None:
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            self._connections.check()  # PostgreSQL was restarted: drop the others too, not one after the other
            raise


class _Connection(Connection[Any]):
    """Tells its pool why it can't be made: psycopg_pool only logs it."""

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, failed: Callable[[psycopg.Error | OSError], None], **kwargs: Any
    ) -> _Connection:
        try:
            return super().connect(conninfo, **kwargs)
        except (psycopg.Error, OSError) as error:
            failed(error)
            raise


def _is_foreign(record: logging.LogRecord) -> bool:
    """Whether psycopg_pool speaks of somebody else's pool. What it says of ours is raised to the one who enqueues."""
    words = record.args if isinstance(record.args, tuple) else ()
    return not any(word == _NAME or isinstance(word, _Connection) for word in words)


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


def _together(target: SyncTarget, chunks: Sequence[Chunk]) -> AbstractContextManager[object]:
    """A transaction if several statements would commit one by one. Never in the way of the caller's own."""
    connection = target if isinstance(target, Connection) else target.connection
    return connection.transaction() if connection.autocommit and len(chunks) > 1 else nullcontext()


@contextmanager
def _refusals(target: Target) -> Iterator[None]:
    """What PostgreSQL says against the jobs, or of a missing schema, as our errors. Others pass as they are."""
    try:
        yield
    except psycopg.Error as error:
        if (error.sqlstate or "")[:2] in ("22", "23"):  # data exceptions, violated constraints
            raise InvalidJob(f"PostgreSQL refused the job: {_complaint(error)}") from error
        connection = target if isinstance(target, Connection | AsyncConnection) else target.connection
        if error.sqlstate and isinstance(told := explain(error, connection.info.dsn), SchemaError):
            raise told from error
        raise


def _complaint(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.UniqueViolation):
        return "one with its id exists already"
    if error.diag.constraint_name == "jobs_payload_check":
        return "its payload must be a JSON object and take at most 2 MiB as jsonb; store what is larger elsewhere"
    return error.diag.message_primary or str(error)
