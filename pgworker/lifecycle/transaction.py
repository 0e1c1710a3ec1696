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
    """What `one_trip` gives: when it is over, which server it went to."""

    def __init__(self, server: datetime | None, settings: Cursor[Any] | None = None) -> None:
        self._server = server
        self._settings = settings

    def server(self) -> datetime | None:
        """When the server that it went to was started, which tells one from another; None: it did not say so.

        To be read when the trip is over.
        """
        row = self._settings.fetchone() if self._settings is not None and self._settings.description else None
        return self._server if row is None else row[0]


@contextmanager
def one_trip(connection: Connection[Any], *, limit_ms: int | None = None) -> Iterator[Trip]:
    """What is sent inside is one transaction at READ COMMITTED, by index, in one round trip if its rows are read after.

    Each statement ends at the server after `limit_ms`, by default before we give up its answer: what is only begun then
    is not done later, with nobody there to hear of it. After `set_up_session` all that goes without saying. No pipeline
    inside: its end would commit what was sent before it.
    """
    server = connection.server if isinstance(connection, PatientConnection) else None
    with _sent_together(connection, begins=server is None):
        if server is None:
            limit_ms = limit_of(connection) or None if limit_ms is None else limit_ms
            yield Trip(None, plan_by_index(connection, limit_ms=limit_ms))
        else:
            if limit_ms is not None:
                limit_transaction(connection, limit_ms)
            yield Trip(server)


def set_up_session(connection: PatientConnection[Any]) -> None:
    """Once for this session, with the patience that it has now: what else each `one_trip` sends beside its statements.

    BEGIN, settings and COMMIT were 0.2 ms of the 1.2 that an idle worker took to claim a new job, and a fifth of its
    CPU. Behind a pooler, which would hand the settings of the session to others, nothing is set: each trip sends them.
    """
    limit_ms, pid = limit_of(connection), connection.info.backend_pid
    row = plan_by_index(connection, limit_ms=limit_ms, session=pid).fetchone()
    connection.limits_each = row is None
    connection.server = None if row is None else row[0]


def limit_session(connection: PatientConnection[Any], patience: float) -> None:
    """Let the server end each statement of this session a little before `patience` seconds, so that what is given up
    here is not done later. For a connection that waits as long, or longer.

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
def _sent_together(connection: Connection[Any], *, begins: bool = True) -> Iterator[None]:
    """One transaction in one pipeline, rolled back if anything in it fails. Not `begins`: at the session's isolation
    level, and its end commits, for in autocommit mode a pipeline is a transaction."""
    is_whole = False
    try:
        with pipeline(connection):
            if begins:
                connection.execute("begin isolation level read committed")
            try:
                yield
            except BaseException as error:
                _undo(connection, error)
                raise
            if begins:
                connection.execute("commit")
            is_whole = True
    except BaseException as error:
        _roll_back(connection)
        if is_whole and (refused := _refusal(error)):
            raise refused from None
        raise


def _refusal(error: BaseException) -> psycopg.Error | None:
    """What the server has said against the commit at the end of a pipeline, or of its own end just then: one answer
    more than the driver expects, over which it stumbles in two ways."""
    reason = error.__context__
    if (
        isinstance(error, psycopg.OperationalError)
        and isinstance(reason, psycopg.Error)
        and reason.pgresult is not None
    ):
        return reason
    if isinstance(error, IndexError):
        return psycopg.OperationalError(
            "the server said more than it was asked when it was to commit; its log has that"
        )
    return None


def _undo(connection: Connection[Any], error: BaseException) -> None:
    """What was sent in this pipeline, before its end commits it."""
    if isinstance(error, psycopg.Error) and error.pgresult is not None:
        return  # the server's, which has undone it, and does nothing more until the end
    try:
        connection.execute("rollback")
    except psycopg.Error:
        pass  # the first one says more
    except BaseException:
        connection.close()  # nor has the server an end of it now
        raise


def _roll_back(connection: Connection[Any]) -> None:
    """After an error, which no other one must hide: Ctrl-C may leave the driver in the middle of an answer."""
    if connection.broken:
        return
    try:
        if connection.info.transaction_status == TransactionStatus.IDLE:
            # At a ROLLBACK the driver forgets what it believes the server to have prepared behind the error.
            connection.execute("begin", prepare=False)
        connection.rollback()
    except psycopg.Error:
        connection.close()  # nobody knows its state: as good as lost, and the server rolls back
