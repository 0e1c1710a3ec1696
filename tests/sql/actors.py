"""Those who act in the tests: a worker with its leases as the database sees it, and a monitor that reclaims.

Each has a connection of its own, so that what blocks is a real lock between real backends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from threading import Thread
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection, Cursor

from pgworker.db.adapters import ClaimingCursor
from pgworker.db.plan import by_index
from pgworker.lifecycle.claim import ClaimedRow, Lanes, claim_jobs, claimed_rows
from pgworker.lifecycle.enqueue import enqueue_jobs
from pgworker.lifecycle.heartbeat import PoolIdentity, WorkerProcess, end_worker
from pgworker.lifecycle.reclaim import (
    Findings,
    Reclaimable,
    ReclaimedLease,
    TakenLease,
    find_reclaimable,
    reclaim_lease,
)
from pgworker.lifecycle.settle import Ended, Next, Settlement, is_settled, settle_jobs
from pgworker.linux.floors import FloorsSeen
from pgworker.model.job import JobRequest
from pgworker.model.retry import Backoff
from pgworker.model.state import Outcome

Connect = Callable[[], Connection[Any]]
Answer = TypeVar("Answer")

DEADLINE = 20.0
"""Seconds that anything may take; a test that waits so long has failed."""

AT_ONCE = Backoff(0, 0, 0)
POOL = PoolIdentity(UUID(int=1), "host", "boot", ("default",))


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as its holder knows it."""

    lease_id: UUID
    worker_id: UUID
    rows: Sequence[ClaimedRow]

    @property
    def ids(self) -> list[UUID]:
        return [row.job_id for row in self.rows]

    def settlement(
        self,
        first: int = 1,
        last: int | None = None,
        *,
        ends: bool | None = None,
        outcome: Outcome = Outcome.SUCCEEDED,
        then: Next = Next.END,
        delay: float = 0.0,
        error: str | None = None,
        result: str | None = None,
    ) -> Settlement:
        """Of positions `first`..`last`, all alike; ends the lease if it reaches its end, unless said otherwise."""
        last = len(self.rows) if last is None else last
        now = time.monotonic_ns()
        ended = [
            Ended(row.job_id, row.execution, now, now, outcome, then, delay, error, result)
            for row in self.rows[first - 1 : last]
        ]
        return Settlement(self.lease_id, first, ended, last == len(self.rows) if ends is None else ends)


@dataclass(frozen=True, slots=True)
class Worker:
    """One incarnation of a worker process and its connection."""

    connection: Connection[Any]
    worker_id: UUID = field(default_factory=uuid4)

    def claim(
        self,
        jobs: int = 100,
        *,
        ttl: float = 60.0,
        slots: int = 1,
        tasks: Sequence[str] = ("t",),
        queues: Sequence[str] = ("default",),
        floors: FloorsSeen | None = None,
        lease_id: UUID | None = None,
        is_durable: bool = True,
    ) -> Held:
        lease_id = lease_id or uuid4()
        lanes = Lanes.of(queues)
        cursor = ClaimingCursor(self.connection)
        with by_index(self.connection):
            claim_jobs(
                cursor,
                lease_id=lease_id,
                worker_id=self.worker_id,
                ttl=ttl,
                slots=slots,
                jobs=jobs,
                tasks=list(tasks),
                lanes=lanes,
                floors=floors or FloorsSeen([0] * len(lanes), [0] * len(lanes)),
                is_durable=is_durable,
            )
        return Held(lease_id, self.worker_id, claimed_rows(cursor))

    def settle(self, settlement: Settlement) -> bool:
        """Whether every position was recorded just now."""
        return settle(self.connection.cursor(), settlement)

    def die(self, how: str = "killed by signal 9") -> None:
        """The master has reaped this worker; said on another connection, for this one may be busy dying."""
        with psycopg.connect(self.connection.info.dsn, autocommit=True) as connection:
            end_worker(connection, POOL, WorkerProcess(self.worker_id, 1, 0, 0), how)


@dataclass(frozen=True, slots=True)
class Monitor:
    """A reclaimer."""

    connection: Connection[Any]
    pool: PoolIdentity = POOL

    def reclaimable(self, *, by_expiry: bool = False) -> list[Reclaimable]:
        """Of ended workers of other pools, too: their clock was never set."""
        ever = datetime.max.replace(tzinfo=timezone.utc)
        return find_reclaimable(
            self.connection, by_expiry=by_expiry, pool_id=self.pool.pool_id, silence=60, patience=10, others_until=ever
        )

    def reclaim(
        self,
        lease: Reclaimable,
        outcomes: Sequence[Outcome | None] = (),
        *,
        assumed_running: int = 0,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> ReclaimedLease | None:
        """Reclaim with what is known of the first positions; nothing is of the others: they never started.

        `meanwhile` is called with the lease in hand, between the two statements.
        """

        def look(taken: TakenLease) -> Findings:
            meanwhile()
            known = [*outcomes, *[None] * len(taken.job_ids)][: len(taken.job_ids)]
            started_us = [None if outcome is None else 100 for outcome in known]
            return Findings(known, started_us, "killed by signal 9", assumed_running)

        return reclaim_lease(self.connection, lease, look, AT_ONCE)

    def reclaim_all(self, *, by_expiry: bool = False, assumed_running: int = 0) -> list[ReclaimedLease]:
        taken = (
            self.reclaim(lease, assumed_running=assumed_running) for lease in self.reclaimable(by_expiry=by_expiry)
        )
        return [lease for lease in taken if lease]


def again(settlement: Settlement) -> Settlement:
    """The same, sent by somebody who has no answer to it yet."""
    return replace(settlement, is_repeated=True)


def settle(cursor: Cursor[Any], settlement: Settlement) -> bool:
    with by_index(cursor.connection):
        settle_jobs(cursor, settlement, time.monotonic_ns())
    return is_settled(cursor, settlement)


def enqueue(connection: Connection[Any], jobs: int = 1, **options: Any) -> list[UUID]:
    return enqueue_jobs(connection, [JobRequest(**({"task": "t", "payload": "{}"} | options)) for _ in range(jobs)])


def ask(connection: Connection[Any], statement: str, *parameters: Any) -> list[Any]:
    """The rows of a statement; of rows with one column, the values."""
    rows = connection.execute(statement.encode(), parameters).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def statuses(connection: Connection[Any], ids: Sequence[UUID]) -> list[str | None]:
    """What the function says of each job, after comparing it with what the view says."""
    asked = "from unnest(%s) with ordinality as asked(id, place)"
    said = ask(connection, f"select pgworker.job_status(id) {asked} order by place", [*ids])
    seen = ask(connection, f"select status {asked} left join pgworker.job_status using (id) order by place", [*ids])
    assert said == seen
    return said


def waiting(connection: Connection[Any]) -> list[tuple[UUID, int, int]]:
    """job_queue: job, execution, failures, in the order of their ids."""
    return ask(connection, "select job_id, execution, failures from pgworker.job_queue order by job_id")


def ended(connection: Connection[Any], job_id: UUID) -> list[tuple[int, str, int]]:
    """The executions of a job: number, outcome, failures."""
    return ask(
        connection,
        "select execution, outcome::text, failures from pgworker.job_executions where job_id = %s order by execution",
        job_id,
    )


def leases(connection: Connection[Any]) -> dict[UUID, list[UUID]]:
    return dict(ask(connection, "select lease_id, job_ids from pgworker.job_leases"))


def now(connection: Connection[Any]) -> datetime:
    """The database's clock."""
    moment: datetime = ask(connection, "select clock_timestamp()")[0]
    return moment


class Blocked(Generic[Answer]):
    """A call in a thread of its own, seen to wait for a lock of another backend."""

    def __init__(self, connection: Connection[Any], call: Callable[[], Answer]) -> None:
        self._call = call
        self._answers: list[Answer] = []
        self._errors: list[BaseException] = []
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()
        with psycopg.connect(connection.info.dsn, autocommit=True) as observer:
            self._wait(observer, connection.info.backend_pid)

    def answer(self) -> Answer:
        """What the call returns or raises, once nothing blocks it any more."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "still blocked"
        if self._errors:
            raise self._errors[0]
        return self._answers[0]

    def _run(self) -> None:
        try:
            self._answers.append(self._call())
        except BaseException as error:  # noqa: BLE001  handed to whoever asks for the answer
            self._errors.append(error)

    def _wait(self, observer: Connection[Any], pid: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while not ask(observer, "select cardinality(pg_blocking_pids(%s)) > 0", pid)[0]:
            assert self._thread.is_alive(), f"not blocked, but done: {self._answers} {self._errors}"
            assert time.monotonic() < deadline, "not blocked"
            time.sleep(0.005)


@contextmanager
def impatient(connection: Connection[Any]) -> Iterator[None]:
    """Inside, a statement that waits for a lock fails: what returns has not waited."""
    connection.execute("set lock_timeout = '1ms'")
    yield
    connection.execute("reset lock_timeout")
