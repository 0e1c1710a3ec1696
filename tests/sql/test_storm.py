"""Everything at once: producers, claimers, reclaimers and a VACUUM on one database, and all that can go wrong.

PGWORKER_STORM_JOBS: how many jobs (30,000 take minutes). PGWORKER_STORM_SEED: to choose the dice.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
from msgspec import structs
from psycopg import Connection

from pgworker.db.connect import connect
from pgworker.errors import LeaseLost
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.claim import ClaimedRow
from pgworker.lifecycle.progress import forget_progress, save_progress
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.renew import renew_leases
from pgworker.lifecycle.settle import Ended, Next, Settlement, find_unsettled, is_settled, settle_jobs
from pgworker.lifecycle.transaction import one_trip, set_up_session
from pgworker.model.progress import check_progress
from pgworker.model.state import CancelAnswer, Outcome
from tests.sql.actors import Connect, Held, Monitor, Worker, again, ask, enqueue, settle
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

JOBS = int(os.environ.get("PGWORKER_STORM_JOBS", "1500"))
SEED = int(os.environ.get("PGWORKER_STORM_SEED", str(time.time_ns() % 1_000_000)))
PATIENCE = 30 + JOBS / 50
SHORT_TTL = 0.2
TASKS = ("t", "effect")
QUEUES = ("default", "other")


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the actors were told, kept outside the database until the end."""

    enqueued: list[tuple[UUID]] = field(default_factory=list)
    rolled_back: list[tuple[UUID]] = field(default_factory=list)
    acknowledged: list[tuple[UUID, int, UUID]] = field(default_factory=list)
    refused: list[tuple[UUID, int, UUID]] = field(default_factory=list)
    cancelled: list[tuple[UUID]] = field(default_factory=list)

    def store(self, connection: Connection[Any]) -> None:
        for table in ("enqueued", "rolled_back", "acknowledged", "refused", "cancelled"):
            with connection.cursor() as cursor, cursor.copy(f"copy chaos.{table} from stdin".encode()) as copy:
                for row in getattr(self, table):
                    copy.write_row(row)


@dataclass(frozen=True, slots=True)
class Storm:
    dsn: str
    ledger: Ledger = field(default_factory=Ledger)
    is_over: Event = field(default_factory=Event)
    errors: list[BaseException] = field(default_factory=list)


class Actor:
    """Somebody with a thread, dice and a connection of his own."""

    def __init__(self, storm: Storm, number: int) -> None:
        self.storm = storm
        self.ledger = storm.ledger
        self.dice = random.Random(f"{SEED} {type(self).__name__} {number}")
        self.connection = self.connected()
        self.thread = Thread(target=self._run, name=f"{type(self).__name__} {number}", daemon=True)

    def act(self) -> None:
        raise NotImplementedError

    def happens(self, chance: float) -> bool:
        return self.dice.random() < chance

    def pause(self, seconds: float) -> None:
        self.storm.is_over.wait(seconds)

    def connected(self) -> Connection[Any]:
        """Half of us have a session that is set up, as a worker without a pooler; the others say it all each time."""
        connection = connect(self.storm.dsn, application_name="storm", patience=60.0)
        if self.happens(0.5):
            set_up_session(connection)
        return connection

    def reconnect(self) -> None:
        self.connection.close()
        self.connection = self.connected()

    def lose_reply(self) -> None:
        """Send COMMIT, and be gone before its reply."""
        self.connection.pgconn.send_query(b"commit")
        self.connection.pgconn.flush()
        self.reconnect()

    def _run(self) -> None:
        try:
            while not self.storm.is_over.is_set():
                self.act()
        except BaseException as error:  # noqa: BLE001  ends the test
            self.storm.errors.append(error)
            self.storm.is_over.set()
        finally:
            self.connection.close()


class Producer(Actor):
    def act(self) -> None:
        if len(self.ledger.enqueued) < JOBS:
            self.enqueue()
        else:
            self.pause(0.05)

    def enqueue(self) -> None:
        options = {
            "task": self.dice.choice(TASKS),
            "queue": self.dice.choice(QUEUES),
            "priority": self.dice.randint(4, 6),
            "max_attempts": self.dice.randint(1, 4),
        }
        jobs = self.dice.randint(1, 40)
        if self.happens(0.8):
            self.ledger.enqueued.extend((job,) for job in enqueue(self.connection, jobs, **options))
            return
        with self.connection.transaction(force_rollback=True):
            self.ledger.rolled_back.extend((job,) for job in enqueue(self.connection, jobs, **options))


class Claimer(Actor):
    """A worker, and all the ways in which it can fail its leases."""

    def __init__(self, storm: Storm, number: int) -> None:
        super().__init__(storm, number)
        self.worker_id = uuid4()
        self.left_behind: list[tuple[Held, int]] = []

    def act(self) -> None:
        if self.left_behind and self.happens(0.3):
            self.go_on(*self.left_behind.pop(0))
        jobs, lease_id, ttl = self.dice.randint(1, 30), uuid4(), self.dice.choice([60, 60, 60, SHORT_TTL])
        if self.happens(0.05):
            with self.connection.transaction(force_rollback=True):
                self.claim(jobs, ttl, lease_id)
        elif self.happens(0.05):
            self.connection.execute("begin")
            self.claim(jobs, SHORT_TTL, lease_id)
            self.lose_reply()
            release_jobs(self.connection, lease_id, 1)
        elif held := self.claim(jobs, ttl, lease_id):
            self.go_on(held, 1)
        else:
            self.pause(0.01)

    def claim(self, jobs: int, ttl: float, lease_id: UUID) -> Held | None:
        worker = Worker(self.connection, self.worker_id)
        held = worker.claim(jobs, ttl=ttl, lease_id=lease_id, tasks=TASKS, queues=QUEUES)
        return held if held.rows else None

    def go_on(self, held: Held, first: int) -> None:
        """Run and settle a lease from this position on, to its end or to some misfortune."""
        last = len(held.rows)
        while first <= last:
            if self.happens(0.02):
                self.die()
                return
            if self.happens(0.05):
                if self.happens(0.5):
                    renew_leases(self.connection, [held.lease_id], 0)  # over at once: a zombie will be back
                self.left_behind.append((held, first))
                return
            if self.happens(0.05):
                renew_leases(self.connection, [held.lease_id], self.dice.choice([SHORT_TTL, 60]))
            if self.happens(0.05) and not release_jobs(self.connection, held.lease_id, first).is_busy:
                if first > 1:
                    settle(self.connection.cursor(), Settlement(held.lease_id, first, [], ends_lease=True))
                return
            try:
                first = self.step(held, first, last)
            except LeaseLost:
                return

    def step(self, held: Held, first: int, last: int) -> int:
        """Settle one group, or one job in its own transaction; the position after it."""
        self.say(held, first)
        if held.rows[first - 1].task == "effect":
            self.run_in_transaction(held, first, first == last)
            return first + 1
        upto = first
        while upto < last and held.rows[upto].task != "effect" and self.happens(0.8):
            upto += 1
        runs = [self.run_job(row) for row in held.rows[first - 1 : upto]]
        self.settle(Settlement(held.lease_id, first, runs, upto == last))
        return upto + 1

    def say(self, held: Held, first: int) -> None:
        """Some jobs say how far they are, from here on, though it may not be theirs to say any more."""
        spoken = [(position, row) for position, row in enumerate(held.rows[first - 1 :], first) if self.happens(0.2)]
        said = {position: check_progress(row.job_id, 0.5, "", {"from": row.execution}) for position, row in spoken}
        save_progress(self.connection, held.lease_id, said)

    def record(self, cursor: psycopg.Cursor[Any], settlement: Settlement) -> bool:
        """As the clerk does: what jobs that end had said goes in the same transaction."""
        with self.connection.transaction():
            is_new = settle(cursor, settlement)
            forget_progress(self.connection, [run.job_id for run in settlement.executions])
        return is_new

    def run_job(self, row: ClaimedRow) -> Ended:
        started_ns = time.monotonic_ns()
        outcome = self.dice.choices(
            [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.SNOOZED], [85, 8, 2, 5]
        )[0]
        then, maximum = Next.END, row.max_attempts
        if outcome is not Outcome.SUCCEEDED:
            assert maximum is not None
            then = Next.BURY if outcome.is_charged and row.failures + 1 >= maximum else Next.REQUEUE
        delay = self.dice.choice([0, 0.01])
        return Ended(row.job_id, row.execution, started_ns, time.monotonic_ns(), outcome, then, delay)

    def settle(self, settlement: Settlement) -> None:
        if self.happens(0.05):
            self.connection.execute("begin")
            self.record(self.connection.cursor(), settlement)
            self.lose_reply()
            settlement = again(settlement)
        elif self.happens(0.02):
            with self.connection.transaction(force_rollback=True):
                settle(self.connection.cursor(), settlement)
        cursor = self.connection.cursor()
        try:
            if self.happens(0.3):
                self.settle_and_claim(cursor, settlement)
            else:
                self.check(cursor, settlement, self.record(cursor, settlement))
        except psycopg.errors.UniqueViolation:  # what had no reply has committed meanwhile
            self.check(cursor, settlement, self.record(cursor, settlement))
        if self.happens(0.05):
            assert not settle(cursor, again(settlement)) or not settlement.ended
            assert not find_unsettled(cursor, settlement)

    def settle_and_claim(self, cursor: psycopg.Cursor[Any], settlement: Settlement) -> None:
        """One trip, as the clerk makes it."""
        with one_trip(self.connection):
            settle_jobs(cursor, settlement, time.monotonic_ns())
            forget_progress(self.connection, [run.job_id for run in settlement.executions])
            held = self.claim(self.dice.randint(1, 30), 60, uuid4())
            settled = is_settled(cursor, settlement)
        if held:
            self.left_behind.append((held, 1))
        self.check(cursor, settlement, settled)

    def check(self, cursor: psycopg.Cursor[Any], settlement: Settlement, settled: bool) -> None:
        runs = [(run.job_id, run.execution, settlement.lease_id) for run in settlement.executions]
        if not settled and find_unsettled(cursor, settlement):
            if len(runs) == 1:
                self.ledger.refused.extend(runs)
            raise LeaseLost
        self.ledger.acknowledged.extend(runs)

    def run_in_transaction(self, held: Held, position: int, is_last: bool) -> None:
        """The handler's own transaction on its own connection: its effect and its success are one COMMIT."""
        row = held.rows[position - 1]
        started_ns = time.monotonic_ns()
        with psycopg.connect(self.storm.dsn, autocommit=True) as handler:
            if self.happens(0.9):
                with handler.transaction():
                    handler.execute("insert into chaos.effect values (%s, %s)", [row.job_id, row.execution])
                    run = Ended(row.job_id, row.execution, started_ns, time.monotonic_ns())
                    settlement = Settlement(held.lease_id, position, [run], ends_lease=False)
                    if not settle(handler.cursor(), settlement):
                        raise LeaseLost
                self.ledger.acknowledged.append((row.job_id, row.execution, held.lease_id))
                if self.happens(0.1):  # and with us what we know of who has said anything
                    self.die()
                    raise LeaseLost
                forget_progress(self.connection, [row.job_id])
                if is_last:
                    settle(self.connection.cursor(), Settlement(held.lease_id, position + 1, [], ends_lease=True))
                return
            with handler.transaction(force_rollback=True):
                handler.execute("insert into chaos.effect values (%s, %s)", [row.job_id, row.execution])
        failed = structs.replace(self.run_job(row), outcome=Outcome.FAILED, next=Next.REQUEUE, started_ns=started_ns)
        if row.failures + 1 >= (row.max_attempts or 0):
            failed = structs.replace(failed, next=Next.BURY)
        self.settle(Settlement(held.lease_id, position, [failed], is_last))

    def die(self) -> None:
        """Leave everything behind; the next worker is a new incarnation."""
        with psycopg.connect(self.storm.dsn, autocommit=True) as master:
            Worker(master, self.worker_id).die()
        self.reconnect()
        self.worker_id = uuid4()
        self.left_behind.clear()


class Reclaimer(Actor):
    def act(self) -> None:
        monitor = Monitor(self.connection)
        for lease in monitor.reclaimable(by_expiry=True):
            running = self.dice.choice([[], [Outcome.CRASHED], [Outcome.LOST, Outcome.LOST, Outcome.TIMED_OUT]])
            monitor.reclaim(lease, running, assumed_running=0 if running else lease.slots)
        self.pause(0.02)


class Canceller(Actor):
    def act(self) -> None:
        if self.ledger.enqueued:
            [job] = self.dice.choice(self.ledger.enqueued[-200:])
            if cancel_job(self.connection, job) is CancelAnswer.CANCELLED:
                self.ledger.cancelled.append((job,))
        self.pause(0.02)


class Cleaner(Actor):
    def act(self) -> None:
        self.connection.execute("vacuum (analyze) pgworker.job_queue, pgworker.job_leases")
        self.pause(0.05)


class Auditor(Actor):
    def act(self) -> None:
        assert offences(self.connection, STORED) == {}
        self.pause(0.5)


CAST: list[tuple[type[Actor], int]] = [
    (Producer, 2),
    (Claimer, 6),
    (Reclaimer, 2),
    (Canceller, 1),
    (Cleaner, 1),
    (Auditor, 1),
]


def test_in_a_storm_of_everything_that_can_go_wrong_no_invariant_breaks(dsn: str, connect: Connect) -> None:
    observer = connect()
    observer.execute(WITNESSES.encode())
    storm = Storm(dsn)
    settle_too_late(observer, storm)
    actors = [kind(storm, number) for kind, many in CAST for number in range(many)]
    for actor in actors:
        actor.thread.start()
    deadline = time.monotonic() + PATIENCE
    while not storm.is_over.wait(0.1) and not is_calm(observer, storm):
        assert time.monotonic() < deadline, (SEED, ask(observer, LEFT))
    storm.is_over.set()
    for actor in actors:
        actor.thread.join(PATIENCE)
        assert not actor.thread.is_alive(), (SEED, actor.thread.name)
    for error in storm.errors:
        raise AssertionError(f"seed {SEED}") from error
    storm.ledger.store(observer)
    assert offences(observer, STORED) | offences(observer, WITNESSED) == {}, SEED
    assert storm.ledger.refused, SEED
    happened = dict(ask(observer, "select outcome::text, count(*) from pgworker.job_executions group by outcome"))
    assert happened.keys() >= {"succeeded", "failed", "crashed", "lost", "cancelled", "snoozed"}, (SEED, happened)


def settle_too_late(observer: Connection[Any], storm: Storm) -> None:
    """Once at least: the dice of a storm may let it come about, or not."""
    storm.ledger.enqueued.extend((job,) for job in enqueue(observer))
    worker = Worker(observer)
    held = worker.claim(1)
    worker.die()
    Monitor(observer).reclaim_all()
    late = held.settlement()
    assert not worker.settle(late)
    storm.ledger.refused.extend((run.job_id, run.execution, held.lease_id) for run in late.executions)


LEFT = "select (select count(*) from pgworker.job_queue), (select count(*) from pgworker.job_leases)"


def is_calm(observer: Connection[Any], storm: Storm) -> bool:
    return len(storm.ledger.enqueued) >= JOBS and ask(observer, LEFT) == [(0, 0)]
