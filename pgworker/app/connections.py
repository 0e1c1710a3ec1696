"""The few connections of an App's own, for everything that comes without the caller's.

They are psycopg_pool's, with what it leaves to its callers: one pool per process, since a forked child must not touch
its parent's sockets; the reason when no connection comes; and no log lines about what is raised anyway.
"""

from __future__ import annotations

import logging
import os
import select
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from pgworker.app.per_process import PerProcess
from pgworker.db.adapters import OWN
from pgworker.db.connect import conninfo, explain, explain_use
from pgworker.db.patience import ANSWER, PatientConnection
from pgworker.errors import DatabaseUnavailable, PgworkerError
from pgworker.lifecycle.transaction import in_time, limit_session

MAX_CONNECTIONS: Final = 4
_NAME: Final = "pgworker producer"
_SLICE: Final = 0.5
"""Seconds between two looks at why no connection has come."""

_PREPARE: Final = 5  # times that a statement is sent before the server keeps it, where no pooler is in between

_IN_DOUBT: Final = frozenset({"26000", "42P05", "57014"})
"""No such prepared statement, one more of that name, cancelled: driver and server may not agree on what is prepared."""

_FRESH: Final = 1.0
"""Seconds after its last use during which a connection is asked nothing unless something has come from the server."""


@dataclass(slots=True)
class Waits:
    """How long one waits, in seconds."""

    for_connection: float = 10.0
    """A restart of PostgreSQL fits in."""
    for_answer: float = 60.0
    """For each, on a connection. The server gives up before, so that what is given up is not done."""


class Connections:
    """Opened when they are first needed, at most four, for all threads.

    `dsn` is asked each time; if it has changed, they are opened anew, as in a forked child and after `close()`.
    """

    def __init__(self, dsn: Callable[[], str]) -> None:
        self._dsn = dsn
        self.waits = Waits()
        self._pools = PerProcess(self._open)

    @property
    def dsn(self) -> str:
        """Where they go. ConfigurationError if nothing says so."""
        return self._dsn()

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection in autocommit mode, for as long as the block lasts. What psycopg raises in it comes explained.

        ConfigurationError for what only the user can mend; DatabaseUnavailable if there is no connection within ten
        seconds, or the server undoes a statement, which it does before one gives up its answer; OutcomeUnknown if the
        connection breaks on the way: then nobody knows whether the last statement took effect.

        Several transactions: each in `read_committed` or `in_time`.
        """
        pool, connection = self._check_out()
        try:
            yield connection
        except psycopg.Error as error:
            explained = explain_use(error, connection, pool.dsn)
            if error.sqlstate in _IN_DOUBT:
                connection.close()
            raise explained from error
        finally:
            pool.give_back(connection)

    @contextmanager
    def statement(self) -> Iterator[Connection[Any]]:
        """As `connection`, for a single statement."""
        with self.connection() as connection, in_time(connection):
            yield connection

    def close(self) -> None:
        """Close what this process has opened."""
        if pool := self._pools.pop():
            pool.close()

    def _check_out(self) -> tuple[_Pool, _Connection]:
        while True:
            pool = self._pools.get()
            if pool.dsn != self.dsn:
                if self._pools.drop(pool):  # by one thread: the next may be open already
                    pool.close()
                pool = self._pools.get()
            try:
                return pool, pool.check_out()
            except PoolClosed as error:  # by another thread, a moment ago; or for good, as the program ends
                if self._pools.get() is pool:
                    raise explain(error, pool.dsn) from error

    def _open(self) -> _Pool:
        return _Pool(self.dsn, self, self.waits)


class _Pool:
    """One process's connections to `dsn`, until `owner` is gone."""

    def __init__(self, dsn: str, owner: Connections, waits: Waits) -> None:
        self.dsn = dsn
        self._waits = waits
        self._pid = os.getpid()
        self._failure: tuple[float, PgworkerError] | None = None
        logging.getLogger("psycopg.pool").addFilter(_is_foreign)
        self._connections = ConnectionPool(
            conninfo(dsn, _NAME),
            connection_class=_Connection,
            kwargs={
                "failed": self._note,
                "waits": waits,
                "autocommit": True,
                "prepare_threshold": None,
                "context": OWN,
            },
            check=self._check,
            name=_NAME,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            reconnect_timeout=0,  # who waits asks again, so nothing goes on in the background when nobody does
            num_workers=1,
            open=True,
        )
        self.close = weakref.finalize(owner, self._close)  # at exit too: threads that wait then would hold it up

    def check_out(self) -> _Connection:
        """PoolClosed: it was, perhaps while one waited."""
        connection = self._wait_for_one()
        connection.patience = self._waits.for_answer
        return connection

    def give_back(self, connection: _Connection) -> None:
        connection.patience = ANSWER
        connection.used_at = time.monotonic()
        self._connections.putconn(connection)

    def _close(self) -> None:
        if os.getpid() == self._pid:
            self._connections.close()

    def _wait_for_one(self) -> _Connection:
        begun = time.monotonic()
        while True:
            try:
                return self._connections.getconn(timeout=_SLICE)
            except PoolTimeout:  # waiting is what this loop is for
                pass
            except PoolClosed:  # which is an OperationalError, too, and no outage
                raise
            except psycopg.Error as error:
                raise explain(error, self.dsn) from error
            self._give_up(begun)  # out here, where nothing says that it was raised while PoolTimeout was handled

    def _give_up(self, begun: float) -> None:
        """Raise why there is no connection, if waiting any longer makes no sense."""
        failed_at, failure = self._failure or (0.0, None)
        known = failure if failed_at >= begun else None
        outage = known is None or isinstance(known, DatabaseUnavailable)
        if outage and time.monotonic() - begun < self._waits.for_connection:
            return
        seconds = f"{self._waits.for_connection:.0f} s"
        busy = f"The App's {MAX_CONNECTIONS} connections were all busy for {seconds}. Enqueue in fewer threads."
        raise known or DatabaseUnavailable(busy)

    def _note(self, error: psycopg.Error | OSError) -> None:
        self._failure = time.monotonic(), explain(error, self.dsn)

    def _check(self, connection: _Connection) -> None:
        """Whether it lives, at the cost of a round trip where that is in doubt."""
        if connection.is_fresh:
            return
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            self._connections.check()  # PostgreSQL was restarted: drop the others too, not one after the other
            raise


class _Connection(PatientConnection[Any]):
    """Tells its pool why it can't be made: psycopg_pool only logs it."""

    patience = ANSWER
    used_at = -_FRESH

    @property
    def is_fresh(self) -> bool:
        """Whether it was used a moment ago, and the server has not spoken since: its last words would be an end."""
        if time.monotonic() - self.used_at > _FRESH or self.closed:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, failed: Callable[[psycopg.Error | OSError], None], waits: Waits, **kwargs: Any
    ) -> _Connection:
        try:
            connection: _Connection = super().connect(conninfo, **kwargs)
            try:
                limit_session(connection, waits.for_answer)
            except BaseException:
                connection.close()
                raise
            if not connection.limits_each:  # a pooler in transaction mode keeps no prepared statements either
                connection.prepare_threshold = _PREPARE
        except (psycopg.Error, OSError) as error:
            failed(error)
            raise
        return connection


def _is_foreign(record: logging.LogRecord) -> bool:
    """Whether psycopg_pool speaks of somebody else's pool. What it says of ours is raised to the one who uses it."""
    words = record.args if isinstance(record.args, tuple) else ()
    return not any(word == _NAME or isinstance(word, _Connection) for word in words)
