"""Transactions of more than one statement, in which each sees what was committed before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from datetime import datetime
from typing import Any, Final, TypeGuard

import psycopg
from psycopg import AsyncConnection, Connection, Cursor
from psycopg.pq import TransactionStatus

from pgworker.db.adapters import OwnAsyncCursor, OwnCursor
from pgworker.db.patience import PatientConnection, limit_of, server_limit_ms
from pgworker.db.plan import plan_by_index
from pgworker.sql.load import query

_AS_IT_IS: Final = nullcontext()


@contextmanager
def read_committed(connection: Connection[Any]) -> Iterator[Cursor[Any]]:
    """One transaction on a connection in autocommit mode, at READ COMMITTED whatever its role or database prefers."""
    with connection.cursor() as cursor:
        cursor.execute("begin isolation level read committed")
        # Should this process stop between two statements, its locks must not stop everybody else.
        cursor.execute("set local idle_in_transaction_session_timeout = '10s'")
        if _limits_each(connection):
            limit_transaction(connection, limit_of(connection))
        try:
            yield cursor
            cursor.execute("commit")
        except BaseException:
            _roll_back(connection)
            raise


def execute_alone(
    connection: Connection[Any],
    statement: str,
    parameters: Mapping[str, Any],
    setting: str = "set local statement_timeout = 0",
) -> list[Any]:
    """The rows of one statement, in a transaction of its own at READ COMMITTED with `setting`: however long it takes.

    The server commits without waiting for us: what is locked must not stay so when this process is stopped meanwhile.
    """
    with connection.cursor() as cursor:
        with _sent_together(connection):
            connection.execute(setting.encode())
            cursor.execute(statement, parameters)
        return cursor.fetchall()


class Trip:
    """One that has been sent."""

    def __init__(self, settings: Cursor[Any]) -> None:
        self._settings = settings

    def server(self) -> datetime | None:
        """When the server that it went to was started, which tells one from another; None: it did not say so.

        To be read when the trip is over.
        """
        row = self._settings.fetchone() if self._settings.description else None
        return None if row is None else row[-1]


@contextmanager
def one_trip(connection: Connection[Any], *, is_durable: bool, limit_ms: int | None = None) -> Iterator[Trip]:
    """What is sent inside is one transaction at READ COMMITTED, by index, in one round trip if its rows are read after.

    Each statement ends at the server after `limit_ms`, by default before we give up its answer: what is only begun then
    is not done later, with nobody there to hear of it. If not `is_durable`, the commit does not wait for the disk.
    """
    if limit_ms is None:
        limit_ms = limit_of(connection) or None
    with _sent_together(connection):
        yield Trip(plan_by_index(connection, limit_ms=limit_ms, commit=None if is_durable else "off"))


def limit_session(connection: PatientConnection[Any], patience: float) -> None:
    """As in `one_trip`, for all that is sent by this connection with at least this patience.

    Behind a pooler, which would hand the setting of the session to others, it is for what is sent in `read_committed`
    or `in_time`: a pooler gives its clients pids that are not a backend's.
    """
    own = {"limit": server_limit_ms(patience), "pid": connection.info.backend_pid, "is_local": False}
    connection.limits_each = connection.execute(query("limit_time"), own).fetchone() is None


def in_time(connection: Connection[Any]) -> AbstractContextManager[None]:
    """One statement with the limit that `limit_session` could not set, in the same round trip if its rows are fetched
    behind this: what is sent in a pipeline is a transaction."""
    return _limited(connection) if _limits_each(connection) else _AS_IT_IS


@contextmanager
def _limited(connection: Connection[Any]) -> Iterator[None]:
    with connection.pipeline():
        limit_transaction(connection, limit_of(connection))
        yield


def limit_transaction(connection: Connection[Any], limit_ms: int) -> None:
    """In an open transaction, or a pipeline: each statement from now on has so many milliseconds at the server."""
    connection.execute(query("limit_time"), {"limit": limit_ms, "pid": None, "is_local": True})


def _limits_each(connection: Connection[Any]) -> TypeGuard[PatientConnection[Any]]:
    return isinstance(connection, PatientConnection) and connection.limits_each


@contextmanager
def pipeline(connection: Connection[Any]) -> Iterator[None]:
    """The driver's. Ctrl-C between two of its calls ends what was sent, as it does while it waits for an answer."""
    with connection.pipeline():
        try:
            yield
        except KeyboardInterrupt:
            connection.cancel_safe()
            raise


@contextmanager
def all_or_none(connection: Connection[Any]) -> Iterator[None]:
    """A transaction, or a savepoint in the caller's: whatever ends the block before its end, of what was sent in it
    nothing is left. Where the caller commits, his transaction is begun with it, and goes on after it."""
    if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
        OwnCursor(connection).execute("select 1")
    with connection.transaction():
        yield


@asynccontextmanager
async def all_or_none_async(connection: AsyncConnection[Any]) -> AsyncIterator[None]:
    """As `all_or_none`."""
    if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
        await OwnAsyncCursor(connection).execute("select 1")
    async with connection.transaction():
        yield


@contextmanager
def _sent_together(connection: Connection[Any]) -> Iterator[None]:
    """One transaction in one pipeline, rolled back if anything in it fails."""
    try:
        with pipeline(connection):
            connection.execute("begin isolation level read committed")
            yield
            connection.execute("commit")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: Connection[Any]) -> None:
    """After an error, which no other one must hide: Ctrl-C may leave the driver in the middle of an answer."""
    if connection.broken:
        return
    try:
        connection.rollback()
    except psycopg.Error:
        connection.close()  # nobody knows its state: as good as lost, and the server rolls back
