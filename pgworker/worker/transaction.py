"""`ctx.transaction()`: the handler's own transaction, whose COMMIT is the success of its job.

A second connection of the worker, opened at first use. The last statement before COMMIT settles this job under its
lease: if the lease is gone nothing commits; once it has committed, nothing can make the job run again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgworker.app.queue.leases import ClaimedJob
from pgworker.db.adapters import OwnCursor
from pgworker.db.connect import connect, is_farewell
from pgworker.db.patience import ANSWER, PatientConnection
from pgworker.errors import Cancelled, DatabaseUnavailable, LeaseLost
from pgworker.lifecycle.settle import Ended, Settlement, find_unsettled, settle_success
from pgworker.linux import fork
from pgworker.observe.logs import fields, logger

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Answer = TypeVar("Answer")

log = logger("worker.transaction")


class Settleable(Protocol):
    """The execution that a transaction settles."""

    claimed: ClaimedJob
    started_ns: int
    is_settled: bool
    is_lost: bool
    has_ended: bool

    @property
    def must_end(self) -> bool:
        """Whether it has been asked to stop."""

    @property
    def idle_limit_ms(self) -> int:
        """How long its transaction may stay open without a statement."""

    @property
    def commit_limit_ms(self) -> int:
        """How long it may stay open once it has settled the execution, and so has locked its lease."""


class JobTransactions:
    """The second connection of one slot, and the jobs that settle through it, one at a time."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._connection: PatientConnection[Any] | None = None
        self._is_used = False

    @contextmanager
    def open(self, execution: Settleable) -> Iterator[Connection[Any]]:
        """A transaction at READ COMMITTED that ends by settling `execution` as succeeded.

        Waits while the database is away; raises Cancelled once the execution must end. Raises LeaseLost, with nothing
        committed, if another worker has the job by now.
        """
        connection, transaction = self._begin(execution)
        generation = fork.generation
        has_settled = False
        try:
            with transaction:
                try:
                    connection.patience = None  # the handler has a deadline
                    yield connection
                finally:
                    fork.leave_if_forked(generation)
                    connection.patience = patience_at_the_end(execution)
                _settle(connection, execution)
                has_settled = True
        except (psycopg.OperationalError, psycopg.InternalError) as error:
            if is_farewell(error):
                connection.close()
            if not (connection.closed and self._has_committed(execution)):
                raise
            log_found_commit(execution, error)
            has_settled = True
        if has_settled:  # psycopg.Rollback leaves the transaction without an error, and without a settle
            execution.is_settled = True

    def reset(self) -> None:
        """Make the connection as new, or drop it: nothing that a handler did to it reaches the next job."""
        connection = self._connection
        if connection is None or not self._is_used:
            return None
        self._is_used = False
        connection.patience = ANSWER
        if connection.prepare_threshold is not None:  # the driver's list of statements would outlive DISCARD ALL
            return self.close()
        try:
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                connection.rollback()
            connection.autocommit = True
            connection.execute("discard all")
            connection.isolation_level = IsolationLevel.READ_COMMITTED
            connection.read_only = connection.deferrable = None
            connection.row_factory, connection.cursor_factory = tuple_row, psycopg.Cursor
            connection.server_cursor_factory = psycopg.ServerCursor
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _begin(self, execution: Settleable) -> tuple[PatientConnection[Any], ExitStack]:
        """The connection, and the transaction begun on it: for the org of this job, or expressly for none."""

        def begin() -> tuple[PatientConnection[Any], ExitStack]:
            connection = self._connected()
            refuse_after_the_end(execution)
            self._is_used = True
            connection.patience = ANSWER
            with ExitStack() as begun:
                begun.enter_context(connection.transaction())
                OwnCursor(connection).execute(*settings_of(execution))
                return connection, begun.pop_all()

        return self._patiently(begin, execution)

    def _patiently(self, ask: Callable[[], Answer], execution: Settleable) -> Answer:
        """What `ask` gives, on a new connection if the old one has died: that an outage comes is no job's failure."""
        while (answer := self._attempt(ask, execution)) is None:
            time.sleep(random.uniform(0.1, 0.3))
        return answer

    def _attempt(self, ask: Callable[[], Answer], execution: Settleable) -> Answer | None:
        """None: there is no connection."""
        try:
            return ask()
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            if self._connection is not None and not self._connection.closed:
                raise
            raise_if_it_must_end(execution, error)
            return None

    def _connected(self) -> PatientConnection[Any]:
        if self._connection is None or self._connection.closed:
            # Nothing is prepared on it: DISCARD ALL would take the statements and leave the driver's list of them.
            # Its adapters are the app's, as its handlers use it.
            self._connection = connect(
                self._dsn,
                application_name=self._application_name,
                prepare_threshold=None,
                patience=ANSWER,
                adapters=psycopg.adapters,
            )
            self._connection.isolation_level = IsolationLevel.READ_COMMITTED
        return self._connection

    def _has_committed(self, execution: Settleable) -> bool:
        """After a connection died, perhaps at COMMIT: whether that took effect."""

        def look() -> bool:
            with OwnCursor(self._connected()) as cursor:
                return not find_unsettled(cursor, settlement_of(execution))

        return self._patiently(look, execution)


def _settle(connection: Connection[Any], execution: Settleable) -> None:
    settlement = settlement_of(execution)
    with OwnCursor(connection) as cursor:
        if not settle_success(cursor, settlement, time.monotonic_ns(), execution.commit_limit_ms):
            raise lease_is_gone(execution)


def settlement_of(execution: Settleable) -> Settlement:
    """What records this execution as succeeded, ended at this moment."""
    claimed = execution.claimed
    ended = Ended(claimed.row.job_id, claimed.row.execution, execution.started_ns, time.monotonic_ns())
    return Settlement(claimed.lease.lease_id, claimed.position, [ended], ends_lease=False)


def settings_of(execution: Settleable) -> tuple[LiteralString, list[str]]:
    """The statement, and its parameters, that makes a transaction this execution's own, and that of its job's org."""
    return (
        "select set_config('idle_in_transaction_session_timeout', %s, true), set_config('pgworker.org_id', %s, true)",
        [str(execution.idle_limit_ms), execution.claimed.row.org_id or ""],
    )


def patience_at_the_end(execution: Settleable) -> float:
    """Seconds for each answer after the handler: until the server, should it still wait for our COMMIT, has certainly
    rolled back, so that to look for the execution then is to know."""
    return execution.commit_limit_ms / 1000 + 1.0


def lease_is_gone(execution: Settleable) -> LeaseLost:
    """The error for the handler, whose job is lost from now on, whatever it makes of that."""
    execution.is_lost = True
    lease_id = execution.claimed.lease.lease_id
    return LeaseLost(
        f"the lease {lease_id} was not renewed in time: another worker has this job, its transaction is rolled back."
        " Look for lease_lost in the log of the pool, and see --lease-ttl"
    )


def refuse_after_the_end(execution: Settleable) -> None:
    """A thread or task that the handler has left behind would begin inside the transaction of the slot's next job, and
    have that one work for its own org."""
    if execution.has_ended:
        raise RuntimeError("the job has ended, and its slot's connection is another job's: wait for what you start")


def raise_if_it_must_end(execution: Settleable, error: BaseException) -> None:
    if execution.must_end:
        raise Cancelled("the execution had to end before the database was back") from error


def log_found_commit(execution: Settleable, error: BaseException) -> None:
    log.info(
        "the reply to a commit was lost; the commit was found: the job has succeeded",
        extra=fields("commit_found", **execution.claimed.log_fields(), error=error),
    )
