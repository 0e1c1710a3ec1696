"""One bounded look at the database, and the connection that it goes over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg

from pgworker.db.connect import Connection, connect_to_schema, explain
from pgworker.inspection.arrivals import count_arrivals
from pgworker.inspection.database import read_clock, read_schema_version
from pgworker.inspection.dead_letters import count_dead_letters
from pgworker.inspection.failures import Failure, count_failures, list_failures, list_given_up
from pgworker.inspection.queues import Count, QueueCounts, count_queues
from pgworker.inspection.snapshot import look_no_longer_than, snapshot
from pgworker.inspection.workers import WorkerRow, list_workers

MAX_WORKERS = 1000
MAX_FAILURES = 50

ARRIVALS_WITHIN = 10.0
"""Seconds over which the rate of enqueued jobs is taken."""

FAILURES_WITHIN = 60.0
"""Seconds in which failures are counted."""

_PATIENCE = 5.0  # seconds for each statement
_COUNTED_ARRIVALS = 5000
_COUNTED_FAILURES = 10_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The database at one moment, `at` by its own clock. `arrivals` are jobs per second, by queue."""

    at: datetime
    schema: int
    queues: list[QueueCounts]
    workers: list[WorkerRow]
    failed: Count
    failures: list[Failure]
    dead: Count
    given_up: list[Failure]
    arrivals: dict[str, float]


class Database:
    """The database of a DSN: connected when it is looked at, and anew after an error."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Connection | None = None

    def look(self) -> Snapshot:
        """What is there now. PgworkerError, with what to do, if that can't be told; the next look tries again."""
        try:
            if self._connection is None:
                self._connection = connect_to_schema(self._dsn, application_name="pgworker top", prepare_threshold=None)
            return _read(self._connection)
        except BaseException as error:
            self.close()
            if isinstance(error, psycopg.Error | OSError):
                raise explain(error, self._dsn) from error
            raise

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _read(connection: Connection) -> Snapshot:
    """All of it as of one moment; each statement reads a bounded number of rows, by index."""
    with snapshot(connection):
        look_no_longer_than(connection, _PATIENCE)
        return Snapshot(
            at=read_clock(connection),
            workers=list_workers(connection, limit=MAX_WORKERS),
            schema=read_schema_version(connection).version,
            queues=count_queues(connection),
            failed=count_failures(connection, seconds=FAILURES_WITHIN, cap=_COUNTED_FAILURES),
            failures=list_failures(connection, limit=MAX_FAILURES),
            dead=count_dead_letters(connection),
            given_up=list_given_up(connection, limit=MAX_FAILURES),
            arrivals=count_arrivals(connection, seconds=ARRIVALS_WITHIN, cap=_COUNTED_ARRIVALS),
        )
