"""`ctx.transaction()`: the handler's own transaction, whose COMMIT is the success of its job.

A second connection of the worker, opened at first use. The last statement before COMMIT settles this job under its
lease: if the lease is gone nothing commits; once it has committed, nothing can make the job run again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgworker.db.connect import connect
from pgworker.errors import EXIT_BUG, Cancelled, DatabaseUnavailable, LeaseLost
from pgworker.lifecycle.settle import Ended, Settlement, check_settled, is_settled, settle_jobs
from pgworker.linux.board import Run
from pgworker.observe.logs import fields, logger
from pgworker.worker.lease import ClaimedJob

Answer = TypeVar("Answer")

log = logger("worker.transaction")

_IDLE_LIMIT = 600.0  # seconds a handler without a deadline may keep its transaction open without a statement


class JobTransactions:
    """The second connection of one slot, and the jobs that settle through it, one at a time."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._connection: Connection[Any] | None = None
        self._is_used = False

    @contextmanager
    def open(
        self, claimed: ClaimedJob, run: Run | None, must_end: Callable[[], bool], on_settled: Callable[[], None]
    ) -> Iterator[Connection[Any]]:
        """A transaction at READ COMMITTED that ends by settling `claimed` as succeeded.

        Waits while the database is away; raises Cancelled once the execution must end. Raises LeaseLost, with nothing
        committed, if another worker has the job by now.
        """
        connection, transaction = self._begin(claimed.row.org_id, run, must_end)
        started_ns = time.monotonic_ns() if run is None else run.since_ns
        pid = os.getpid()
        has_settled = False
        try:
            with transaction:
                try:
                    yield connection
                finally:
                    _leave_if_forked(pid)
                _settle(connection, _settlement(claimed, started_ns))
                has_settled = True
        except psycopg.OperationalError as error:
            if not (connection.closed and self._has_committed(claimed, started_ns, must_end)):
                raise
            log.info(
                "the reply to a commit was lost; the commit was found",
                extra=fields(job=claimed.row.job_id, error=error),
            )
            has_settled = True
        if has_settled:  # psycopg.Rollback leaves the transaction without an error, and without a settle
            on_settled()

    def reset(self) -> None:
        """Make the connection as new, or drop it: nothing that a handler did to it reaches the next job."""
        connection = self._connection
        if connection is None or not self._is_used:
            return None
        self._is_used = False
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

    def _begin(
        self, org: str | None, run: Run | None, must_end: Callable[[], bool]
    ) -> tuple[Connection[Any], ExitStack]:
        """The connection, and the transaction begun on it: for this org, or expressly for none, and no other one."""

        def begin() -> tuple[Connection[Any], ExitStack]:
            connection = self._connected()
            self._is_used = True
            with ExitStack() as begun:
                begun.enter_context(connection.transaction())
                connection.execute(
                    "select set_config('idle_in_transaction_session_timeout', %s, true), "
                    "set_config('pgworker.org_id', %s, true)",
                    [_idle_limit_ms(run), org or ""],
                )
                return connection, begun.pop_all()

        return self._patiently(begin, must_end)

    def _patiently(self, ask: Callable[[], Answer], must_end: Callable[[], bool]) -> Answer:
        """What `ask` gives, on a new connection if the old one has died: that an outage comes is no job's failure."""
        while (answer := self._attempt(ask, must_end)) is None:
            time.sleep(random.uniform(0.1, 0.3))
        return answer

    def _attempt(self, ask: Callable[[], Answer], must_end: Callable[[], bool]) -> Answer | None:
        """None: there is no connection."""
        try:
            return ask()
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            if self._connection is not None and not self._connection.closed:
                raise
            if must_end():
                raise Cancelled("the execution had to end before the database was back") from error
            return None

    def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            # Nothing is prepared on it: DISCARD ALL would take the statements and leave the driver's list of them.
            self._connection = connect(self._dsn, application_name=self._application_name, prepare_threshold=None)
            self._connection.isolation_level = IsolationLevel.READ_COMMITTED
        return self._connection

    def _has_committed(self, claimed: ClaimedJob, started_ns: int, must_end: Callable[[], bool]) -> bool:
        """After a connection died, perhaps at COMMIT: whether that took effect."""

        def look() -> bool:
            with self._connected().cursor() as cursor:
                check_settled(cursor, _settlement(claimed, started_ns))
            return True

        try:
            return self._patiently(look, must_end)
        except LeaseLost:
            return False


def _settlement(claimed: ClaimedJob, started_ns: int) -> Settlement:
    ended = Ended(claimed.row.job_id, claimed.row.execution, started_ns, time.monotonic_ns())
    return Settlement(claimed.lease.lease_id, claimed.position, [ended], ends_lease=False)


def _settle(connection: Connection[Any], settlement: Settlement) -> None:
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:  # whatever the handler has set on its connection
        settle_jobs(cursor, settlement, time.monotonic_ns())
        if not is_settled(cursor, settlement):
            raise LeaseLost(
                f"the lease {settlement.lease_id} is gone: another worker has this job, its transaction is rolled back"
            )


def _leave_if_forked(pid: int) -> None:
    """A child that the handler has forked would end the transaction on the connection that it shares with us."""
    if os.getpid() != pid:
        os._exit(EXIT_BUG)


def _idle_limit_ms(run: Run | None) -> str:
    if run is None or not run.deadline_ns:
        return str(round(_IDLE_LIMIT * 1000))
    return str(max(1000, (run.deadline_ns - time.monotonic_ns()) // 1_000_000 + 1000))
