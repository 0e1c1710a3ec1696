"""The psycopg connection under what the caller has at hand: a connection or cursor, or something that holds one.

SQLAlchemy and Django are not imported here: whoever has an object of theirs has imported them.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Protocol

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor

from pgworker.model import exact

SyncDriver = Connection[Any] | Cursor[Any]
AsyncDriver = AsyncConnection[Any] | AsyncCursor[Any]
Driver = SyncDriver | AsyncDriver


class HoldsConnection(Protocol):
    """A session or connection of SQLAlchemy, synchronous or not, or `django.db.connection`."""

    @property
    def connection(self) -> Any: ...


Target = Driver | HoldsConnection

_DRIVERS: Final = (Connection, Cursor, AsyncConnection, AsyncCursor)
_SESSIONS: Final = (("sqlalchemy.orm", "Session"), ("sqlalchemy.orm", "scoped_session"))
_CONNECTIONS: Final = (("sqlalchemy.engine", "Connection"),)
_ASYNC_SESSIONS: Final = (
    ("sqlalchemy.ext.asyncio", "AsyncSession"),
    ("sqlalchemy.ext.asyncio", "async_scoped_session"),
)
_ASYNC_CONNECTIONS: Final = (("sqlalchemy.ext.asyncio", "AsyncConnection"),)
_DJANGO: Final = (
    ("django.db.backends.base.base", "BaseDatabaseWrapper"),
    ("django.utils.connection", "ConnectionProxy"),
)
_ALL: Final = (*_SESSIONS, *_CONNECTIONS, *_ASYNC_SESSIONS, *_ASYNC_CONNECTIONS, *_DJANGO)


def check_target(target: object) -> None:
    """TypeError unless jobs can be enqueued on `target`. Nothing is connected yet."""
    if not isinstance(target, _DRIVERS) and not _is_one_of(target, _ALL):
        raise TypeError(
            f"jobs go through a connection or cursor of psycopg 3, a session or connection of SQLAlchemy, or "
            f"django.db.connection, not {exact.full_type_name(target)}"
        )


def driver_of(target: Target) -> SyncDriver:
    """The connection or cursor that the caller's transaction is on, begun if SQLAlchemy would not commit it otherwise.

    TypeError: it is asynchronous, or not one of psycopg 3.
    """
    found = _sync_driver(target)
    if isinstance(found, Connection | Cursor):
        return found
    if isinstance(found, AsyncConnection | AsyncCursor) or _is_one_of(target, _ASYNC_SESSIONS + _ASYNC_CONNECTIONS):
        raise TypeError("this connection is asynchronous: use `await ….enqueue_async()` or `….enqueue_many_async()`")
    raise _not_psycopg(found)


async def async_driver_of(target: Target) -> AsyncDriver:
    """`driver_of`, for what is asynchronous."""
    if isinstance(target, AsyncConnection | AsyncCursor):  # as nearly always
        return target
    found: Any = target
    if _is_one_of(found, _ASYNC_SESSIONS):
        found = await found.connection()
    found = await found.run_sync(_sync_driver) if _is_one_of(found, _ASYNC_CONNECTIONS) else _sync_driver(found)
    if isinstance(found, AsyncConnection | AsyncCursor):
        return found
    if isinstance(found, Connection | Cursor):
        raise TypeError("this connection is synchronous: use `.enqueue()` or `.enqueue_many()`")
    raise _not_psycopg(found)


def _sync_driver(target: Any) -> Any:
    """What is under a synchronous object of SQLAlchemy or Django; anything else as it is."""
    if isinstance(target, _DRIVERS):  # as nearly always
        return target
    if _is_one_of(target, _SESSIONS):
        target = target.connection()
    if _is_one_of(target, _CONNECTIONS):
        if not target.in_transaction():
            target.begin()  # what it hasn't begun it doesn't commit, and nobody would notice
        return target.connection.driver_connection
    if _is_one_of(target, _DJANGO):
        target.ensure_connection()
        return target.connection
    return target


def _not_psycopg(found: object) -> TypeError:
    return TypeError(
        f"jobs go through psycopg 3, not {exact.full_type_name(found)}: "
        "make the engine of SQLAlchemy with postgresql+psycopg://, "
        "or install psycopg 3 for Django's PostgreSQL"
    )


def _is_one_of(target: object, classes: tuple[tuple[str, str], ...]) -> bool:
    """Whether it is of one of these classes, of modules that may not be there: then nothing is."""
    known = (getattr(sys.modules.get(module), name, None) for module, name in classes)
    return isinstance(target, tuple(kind for kind in known if kind is not None))
