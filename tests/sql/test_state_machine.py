"""Whatever is done to jobs, in whatever order, by several connections: the database is as a plain model says.

PGWORKER_MACHINE_EXAMPLES: how many sequences of 30 steps, by other dice each time; without it the same ten. One that
fails is printed as a program, the shortest that hypothesis finds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from psycopg import Connection

from pgworker.control.queues import pause_queues, resume_queues
from pgworker.lifecycle.cancel import cancel_job, cancel_jobs
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.dead_letters import discard_dead_letters, requeue_dead_letters
from pgworker.lifecycle.progress import forget_progress, prune_progress, save_progress
from pgworker.lifecycle.prune import PruneAction, prune
from pgworker.lifecycle.purge import purge_queue
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.renew import renew_leases
from pgworker.lifecycle.retry import retry_job
from pgworker.lifecycle.settle import Ended, Next, Settlement, find_unsettled, is_settled, settle_jobs
from pgworker.lifecycle.transaction import one_trip
from pgworker.model.progress import check_progress
from pgworker.model.selection import JobFilter
from pgworker.model.state import CancelAnswer, Outcome, RetryAnswer, Status
from tests.sql.actors import DEADLINE, Held, Monitor, Worker, ask, enqueue, leases, settle, statuses
from tests.sql.history import RETENTION, enqueue_ago, partitions
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences
from tests.sql.job_model import WAITS, Model, ModelJob

EXAMPLES = int(os.environ.get("PGWORKER_MACHINE_EXAMPLES", "10"))
STEPS = 30
QUEUES = ("default", "other")
AT_THE_END = "I1: at the end nothing waits or runs"
LEDGERS = {name: query for name, query in WITNESSED.items() if name != AT_THE_END}

TABLES = (
    "pgworker.jobs, pgworker.job_queue, pgworker.job_leases, pgworker.job_executions, pgworker.dead_letter_jobs, "
    "pgworker.job_progress, pgworker.worker_heartbeats, pgworker.queues, chaos.effect, chaos.enqueued, "
    "chaos.rolled_back, chaos.acknowledged, chaos.refused, chaos.cancelled, chaos.recorded, chaos.lease_ended"
)

which = st.integers(0, 1_000)
"""One of what there is, whatever there is then."""
end_of = st.sampled_from(
    [
        (Outcome.SUCCEEDED, Next.END),
        (Outcome.FAILED, Next.REQUEUE),
        (Outcome.TIMED_OUT, Next.REQUEUE),
        (Outcome.FAILED, Next.BURY),
        (Outcome.SNOOZED, Next.REQUEUE),
        (Outcome.RELEASED, Next.REQUEUE),
        (Outcome.CANCELLED, Next.END),
        None,
    ]
)
"""How a job ends; None: not now."""
known_of = st.lists(st.sampled_from([None, Outcome.LOST, Outcome.CRASHED, Outcome.TIMED_OUT]), max_size=3)
"""What is known of the first positions of a dead worker's lease."""


class Machine(RuleBasedStateMachine):
    """Producers, workers, a monitor and operators; each rule is what one of them does next."""

    dsn: ClassVar[str]
    server: ClassVar[Connection[Any]]

    def __init__(self) -> None:
        super().__init__()
        self.server.execute(f"truncate {TABLES}".encode())
        for name in [*partitions(self.server, "jobs"), *partitions(self.server, "job_executions")]:
            if "_before_" in name:
                self.server.execute(f"drop table pgworker.{name}".encode())
        self.stack = ExitStack()
        self.db = self.server  # one for all sequences: what it asks after each step is planned once
        self.monitor = Monitor(self.connection())
        self.workers = [Worker(self.connection()) for _ in range(2)]
        self.producer = self.connection()
        self.slow = self.connection()
        self.model = Model()
        self.held: list[Held] = []
        self.unsure: list[Settlement] = []
        self.offered: tuple[list[UUID], dict[str, Any]] | None = None
        self.hanging: Settlement | None = None
        self.is_pruned = False

    def connection(self) -> Connection[Any]:
        """Nothing here has to wait for a lock: what does is an error, and no test without an end."""
        options = f"-c lock_timeout={DEADLINE:.0f}s"
        return self.stack.enter_context(psycopg.connect(self.dsn, autocommit=True, options=options))

    def teardown(self) -> None:
        self.stack.close()

    # -- producers

    @rule(jobs=st.integers(1, 4), options=st.data())
    def enqueue(self, jobs: int, options: st.DataObject) -> None:
        chosen = self.options(options)
        ids = enqueue(self.db, jobs, **chosen)
        self.store(ids, chosen)

    @precondition(lambda self: self.offered is None)
    @rule(jobs=st.integers(1, 3), options=st.data())
    def enqueue_in_a_transaction(self, jobs: int, options: st.DataObject) -> None:
        chosen = self.options(options)
        self.producer.execute("begin")
        self.offered = enqueue(self.producer, jobs, **chosen), chosen

    @precondition(lambda self: self.offered is not None)
    @rule(commits=st.booleans())
    def end_that_transaction(self, commits: bool) -> None:
        assert self.offered is not None
        self.producer.execute("commit" if commits else "rollback")
        if commits:
            self.store(*self.offered)
        else:
            self.note("rolled_back", [(job_id,) for job_id in self.offered[0]])
        self.offered = None

    @rule(days=st.integers(8, 10), max_attempts=st.integers(1, 3))
    def enqueue_long_ago(self, days: int, max_attempts: int) -> None:
        ids = enqueue_ago(self.db, days, max_attempts=max_attempts, partition=not self.is_pruned)
        self.model.enqueue(ids, "default", 5, max_attempts, is_scheduled=False)

    def options(self, data: st.DataObject) -> dict[str, Any]:
        return {
            "queue": data.draw(st.sampled_from(QUEUES)),
            "priority": data.draw(st.integers(4, 6)),
            "max_attempts": data.draw(st.integers(1, 3)),
            "run_at": datetime.now(timezone.utc) + timedelta(days=1) if data.draw(st.booleans()) else None,
        }

    def store(self, ids: Sequence[UUID], chosen: dict[str, Any]) -> None:
        self.note("enqueued", [(job_id,) for job_id in ids])
        self.model.enqueue(
            ids, chosen["queue"], chosen["priority"], chosen["max_attempts"], chosen["run_at"] is not None
        )

    # -- workers

    @rule(who=st.integers(0, 1), jobs=st.integers(1, 5), queues=st.permutations(QUEUES), is_known=st.booleans())
    def claim(self, who: int, jobs: int, queues: list[str], is_known: bool) -> None:
        """Not `is_known`: the reply is lost, and the worker knows no more than the id."""
        worker = self.workers[who]
        expected = self.model.lanes_of_due(queues, ())[:jobs]
        if is_known:
            held = worker.claim(jobs, queues=queues)
            self.check_claim(held, queues, expected)
            if held.rows:
                self.held.append(held)
            return
        lease_id = uuid4()
        worker.connection.execute("begin")
        held = worker.claim(jobs, queues=queues, lease_id=lease_id)
        self.check_claim(held, queues, expected)
        self.lose_reply(who)
        back = release_jobs(self.workers[who].connection, lease_id, 1)
        assert sum(lane.jobs for lane in back.lanes) == len(self.model.release(lease_id, 1))

    @precondition(lambda self: self.held)
    @rule(
        which=which, first=st.integers(1, 3), ends=st.lists(end_of, max_size=4), delay=st.sampled_from([0.0, 3600.0]),
        reply=st.sampled_from(["heard", "heard", "lost", "rolled back"]), claims=st.booleans(),
    )  # fmt: skip
    def settle(
        self, which: int, first: int, ends: list[tuple[Outcome, Next] | None], delay: float, reply: str, claims: bool
    ) -> None:
        held = self.held[which % len(self.held)]
        told = self.settlement(held, first, ends, delay)
        if self.is_hanging(told.lease_id):
            return
        who = self.who(held)
        if reply == "heard":
            self.trip(who, told, claims)
            return
        worker = self.workers[who]
        worker.connection.execute("begin")
        is_new = settle(worker.connection.cursor(), told)
        forget_progress(worker.connection, [run.job_id for run in told.executions])
        if reply == "rolled back":
            worker.connection.execute("rollback")
            return
        self.lose_reply(who)
        assert is_new is self.model.settle(told)
        self.unsure.append(told)

    @precondition(lambda self: self.unsure)
    @rule(which=which, who=st.integers(0, 1))
    def settle_again(self, which: int, who: int) -> None:
        """What was not answered is sent again, whatever has become of its jobs."""
        told = self.unsure[which % len(self.unsure)]
        if not self.is_hanging(told.lease_id):
            self.trip(who, told, claims=False)

    @precondition(lambda self: self.held)
    @rule(which=which, position=st.integers(1, 2), end=st.sampled_from([Outcome.FAILED, Outcome.SNOOZED]))
    def cancel_what_runs_and_settle_it(self, which: int, position: int, end: Outcome) -> None:
        """Who was asked to stop wants another try: that is the end all the same. Rare, if left to the other rules."""
        held = self.held[which % len(self.held)]
        ids = [row.job_id for row in held.rows[position - 1 : position]]
        for number, job_id in enumerate(list(self.model.jobs)):
            if job_id in ids:
                self.cancel(number)
                self.settle(which, position, [(end, Next.REQUEUE)], 0.0, "heard", claims=False)

    @precondition(lambda self: self.held)
    @rule(which=which, position=st.integers(1, 5), commits=st.booleans())
    def settle_in_an_own_transaction(self, which: int, position: int, commits: bool) -> None:
        """A handler's effect and its success are one commit."""
        held = self.held[which % len(self.held)]
        told = self.settlement(held, position, [(Outcome.SUCCEEDED, Next.END)], 0.0)
        if self.is_hanging(told.lease_id) or not told.ended:
            return
        told = Settlement(told.lease_id, told.first, told.ended, ends_lease=False)
        [run] = told.executions
        self.db.execute("begin")
        self.db.execute("insert into chaos.effect values (%s, %s)", [run.job_id, run.execution])
        is_new = settle(self.db.cursor(), told)
        keeps = commits and is_new
        self.db.execute("commit" if keeps else "rollback")
        if keeps:
            assert self.model.settle(told)
            forget_progress(self.db, [run.job_id])
        elif commits:
            assert not self.model.settle(told)

    @precondition(lambda self: self.held)
    @rule(which=which, first=st.integers(1, 4))
    def release(self, which: int, first: int) -> None:
        held = self.held[which % len(self.held)]
        lease = self.model.leases.get(held.lease_id)
        if lease is not None and any(cell.has_row for cell in lease.cells[first - 1 :]):
            return  # a worker never gives back what has ended
        answer = release_jobs(self.workers[self.who(held)].connection, held.lease_id, first)
        assert answer.is_busy is self.is_hanging(held.lease_id)
        if not answer.is_busy:
            assert sum(lane.jobs for lane in answer.lanes) == len(self.model.release(held.lease_id, first))

    @precondition(lambda self: self.held)
    @rule(which=which, position=st.integers(1, 5))
    def say(self, which: int, position: int) -> None:
        held = self.held[which % len(self.held)]
        if position > len(held.rows) or self.is_hanging(held.lease_id):
            return
        row = held.rows[position - 1]
        said = check_progress(row.job_id, 0.5, "", {"from": row.execution})
        save_progress(self.workers[self.who(held)].connection, held.lease_id, {position: said})

    @precondition(lambda self: self.held and self.hanging is None)
    @rule(which=which, ends=st.lists(end_of, max_size=3))
    def settle_and_hang(self, which: int, ends: list[tuple[Outcome, Next] | None]) -> None:
        """A trip whose COMMIT is not sent yet; it has its locks."""
        held = self.held[which % len(self.held)]
        told = self.settlement(held, 1, ends, 0.0)
        if held.lease_id in self.model.leases:
            self.slow.execute("begin")
            settle(self.slow.cursor(), told)
            self.hanging = told

    @precondition(lambda self: self.hanging is not None)
    @rule(commits=st.booleans())
    def go_on(self, commits: bool) -> None:
        told, self.hanging = self.hanging, None
        assert told is not None
        if commits:
            forget_progress(self.slow, [run.job_id for run in told.executions])
            self.model.settle(told)
        self.slow.execute("commit" if commits else "rollback")

    @rule(who=st.integers(0, 1))
    def die(self, who: int) -> None:
        """The worker is a new incarnation; what the old one held lies about."""
        self.workers[who].die()
        self.model.ended.add(self.workers[who].worker_id)
        self.workers[who] = Worker(self.workers[who].connection)

    # -- the monitor

    @rule(lives=st.booleans(), which=st.sets(st.integers(0, 3)))
    def renew(self, lives: bool, which: set[int]) -> None:
        """Not `lives`: until this moment only."""
        asked = [held.lease_id for number, held in enumerate(self.held[-4:]) if number in which]
        renewed = renew_leases(self.monitor.connection, asked, 60 if lives else 0)
        assert renewed.keys() == self.model.leases.keys() & set(asked)
        for lease_id, renewal in renewed.items():
            lease = self.model.leases[lease_id]
            assert renewal.is_busy is self.is_hanging(lease_id)
            if not renewal.is_busy:
                lease.is_expired = not lives
                ids = [cell.job.job_id for cell in lease.cells]
                marks = {ids[position - 1] for position in renewal.cancelled if position is not None}
                assert marks == lease.marks & set(ids)

    @rule(by_expiry=st.booleans(), known=known_of, assumes=st.booleans())
    def reclaim(self, by_expiry: bool, known: list[Outcome | None], assumes: bool) -> None:
        found = self.monitor.reclaimable(by_expiry=by_expiry)
        assert {lease.lease_id for lease in found} == self.model.reclaimable(by_expiry)
        for lease in found:
            assumed = lease.slots if assumes else 0
            done = self.monitor.reclaim(lease, known, assumed_running=assumed)
            assert (done is None) is self.is_hanging(lease.lease_id)
            if done is not None:
                unsettled = [cell.job.job_id for cell in self.model.leases[lease.lease_id].unsettled]
                assert [job.job_id for job in done.jobs] == unsettled
                self.model.reclaim(lease.lease_id, known, assumed)

    # -- operators

    @precondition(lambda self: self.model.jobs)
    @rule(which=which)
    def cancel(self, which: int) -> None:
        job = self.job(which)
        if any(self.is_hanging(lease) for lease in self.leases_of(job)):
            return
        answer = cancel_job(self.db, job.job_id)
        if job.status in WAITS:
            assert answer is CancelAnswer.CANCELLED
            self.note("cancelled", [(job.job_id,)])
            self.model.cancel_waiting(job)
        elif job.status is Status.RUNNING:
            assert answer is CancelAnswer.REQUESTED
            self.model.mark(job)
        else:
            assert answer is CancelAnswer.TOO_LATE

    @precondition(lambda self: self.hanging is None)
    @rule(queue=st.sampled_from(QUEUES), waiting=st.booleans())
    def cancel_all_of_a_queue(self, queue: str, waiting: bool) -> None:
        counts = cancel_jobs(self.db, JobFilter(queue=queue, waiting=waiting))
        jobs = [job for job in self.model.jobs.values() if job.queue == queue]
        ended = [job for job in jobs if job.status in WAITS] if waiting else []
        marked = {job.job_id for lease in self.model.leases.values() for job in jobs if job.job_id in lease.marks}
        running = [job for job in jobs if job.status is Status.RUNNING and job.job_id not in marked]
        for job in ended:
            self.model.cancel_waiting(job)
        for job in running:
            self.model.mark(job)
        assert (counts.cancelled, counts.requested) == (len(ended), len(running))

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        gone = [job for job in self.model.waiting() if job.queue == queue]
        assert purge_queue(self.db, queue) == len(gone)
        for job in gone:
            self.model.cancel_waiting(job)

    @precondition(lambda self: self.model.jobs)
    @rule(which=which)
    def retry(self, which: int) -> None:
        job = self.job(which)
        answer = retry_job(self.db, job.job_id)
        if job.status is Status.DEAD_LETTER:
            assert answer is RetryAnswer.REQUEUED
            self.model.requeue(job)
        elif job.status in WAITS:
            assert answer is (RetryAnswer.WAITING if job.is_due else RetryAnswer.DUE)
            job.wait(job.execution, job.failures, is_due=True)
        else:
            assert answer is RetryAnswer[job.status.name]

    @precondition(lambda self: self.dead)
    @rule(which=which, discards=st.booleans())
    def end_a_dead_letter(self, which: int, discards: bool) -> None:
        job = self.dead[which % len(self.dead)]
        if discards:
            assert discard_dead_letters(self.db, [job.job_id]) == [job.job_id]
            self.model.discard(job)
        else:
            assert requeue_dead_letters(self.db, [job.job_id]) == [job.job_id]
            self.model.requeue(job)

    @rule(queue=st.sampled_from(QUEUES), pauses=st.booleans())
    def pause_or_resume(self, queue: str, pauses: bool) -> None:
        if pauses:
            pause_queues(self.db, [queue])
            self.model.paused.add(queue)
        else:
            resume_queues(self.db, [queue])
            self.model.paused.discard(queue)

    @precondition(lambda self: self.hanging is None and self.offered is None)
    @rule()
    def prune(self) -> None:
        """Days go, what waits or has just ended stays."""
        prune_progress(self.db)
        pruned = prune(self.db, RETENTION)
        assert {partition.action for partition in pruned} <= {PruneAction.DROPPED}, pruned
        self.is_pruned = self.is_pruned or bool(pruned)

    # -- what must be true after each of these

    @invariant()
    def nothing_stored_breaks_an_invariant(self) -> None:
        assert offences(self.db, STORED) == {}
        assert offences(self.db, LEDGERS) == {}

    @invariant()
    def each_job_is_as_the_model_says(self) -> None:
        if not (jobs := self.model.jobs):
            return
        assert dict(zip(jobs, statuses(self.db, list(jobs)), strict=True)) == {
            job.job_id: job.status.value for job in jobs.values()
        }
        queued = ask(self.db, "select job_id, execution, failures, run_at <= clock_timestamp() from pgworker.job_queue")
        assert sorted(queued) == sorted(
            (job.job_id, job.execution, job.failures, job.is_due) for job in self.model.waiting()
        )
        rows = ask(self.db, "select job_id, execution, outcome::text, failures from pgworker.job_executions")
        assert sorted(rows) == sorted(
            (job.job_id, execution, outcome, failures)
            for job in jobs.values()
            for execution, (outcome, failures, _) in job.rows.items()
        )
        assert leases(self.db) == {
            lease.lease_id: [cell.job.job_id for cell in lease.cells] for lease in self.model.leases.values()
        }

    # -- helpers of the rules

    @property
    def dead(self) -> list[ModelJob]:
        return [job for job in self.model.jobs.values() if job.status is Status.DEAD_LETTER]

    def job(self, which: int) -> ModelJob:
        return list(self.model.jobs.values())[which % len(self.model.jobs)]

    def who(self, held: Held) -> int:
        """Whose connection is used; that of a new incarnation for a zombie's."""
        return next((who for who, worker in enumerate(self.workers) if worker.worker_id == held.worker_id), 0)

    def leases_of(self, job: ModelJob) -> Iterator[UUID]:
        for lease in self.model.leases.values():
            if any(cell.job is job for cell in lease.cells):
                yield lease.lease_id

    def is_hanging(self, lease_id: UUID) -> bool:
        return self.hanging is not None and self.hanging.lease_id == lease_id

    def settlement(
        self, held: Held, first: int, ends: Sequence[tuple[Outcome, Next] | None], delay: float
    ) -> Settlement:
        """As a worker would say it: what has used up its attempts is buried, and the last part ends the lease."""
        now = time.monotonic_ns()
        ended: list[Ended | None] = []
        for row, end in zip(held.rows[first - 1 :], ends, strict=False):
            if end is None:
                ended.append(None)
                continue
            outcome, then = end
            if outcome.is_charged and row.failures + 1 >= (row.max_attempts or 0):
                then = Next.BURY
            ended.append(Ended(row.job_id, row.execution, now, now, outcome, then, delay))
        lease = self.model.leases.get(held.lease_id)
        unsettled = {cell.job.job_id for cell in lease.unsettled} if lease is not None else set()
        settled = {run.job_id for run in ended if run is not None}
        return Settlement(held.lease_id, first, ended, ends_lease=unsettled <= settled)

    def trip(self, who: int, told: Settlement, claims: bool) -> None:
        """Settle, and perhaps claim, in one transaction and one round trip."""
        worker = self.workers[who]
        cursor = worker.connection.cursor()
        with one_trip(worker.connection):
            settle_jobs(cursor, told, time.monotonic_ns())
            forget_progress(worker.connection, [run.job_id for run in told.executions])
            held = worker.claim(5, queues=QUEUES) if claims else None
        is_new = is_settled(cursor, told)
        assert is_new is self.model.settle(told)
        ledger = [(run.job_id, run.execution, told.lease_id) for run in told.executions]
        is_own = not find_unsettled(cursor, told)
        assert is_own is self.model.is_own(told)
        if is_own:
            self.note("acknowledged", ledger)
        elif len(ledger) == 1:
            self.note("refused", ledger)
        if held is not None and held.rows:
            self.check_claim(held, QUEUES, self.model.lanes_of_due(QUEUES, ())[:5])
            self.held.append(held)

    def check_claim(self, held: Held, queues: Sequence[str], expected: list[int]) -> None:
        lanes = Lanes.of(queues)
        places = [(lanes.index(row.queue, row.priority), row.run_at, row.job_id) for row in held.rows]
        assert places == sorted(places)
        assert [lane for lane, _, _ in places] == expected
        for row in held.rows:
            job = self.model.jobs[row.job_id]
            assert job.is_due
            assert (row.execution, row.failures, row.max_attempts) == (job.execution, job.failures, job.max_attempts)
        self.model.claim(held.lease_id, held.worker_id, held.ids)

    def lose_reply(self, who: int) -> None:
        """Send COMMIT, and be gone before its reply; it has happened when that backend is gone."""
        worker = self.workers[who]
        pid = worker.connection.info.backend_pid
        worker.connection.pgconn.send_query(b"commit")
        worker.connection.pgconn.flush()
        worker.connection.close()
        self.workers[who] = Worker(self.connection(), worker.worker_id)
        deadline = time.monotonic() + DEADLINE
        while ask(self.db, "select count(*) from pg_stat_activity where pid = %s", pid) != [0]:
            assert time.monotonic() < deadline, "a backend that has lost its client goes on"
            time.sleep(0.001)

    def note(self, ledger: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            places = ", ".join(["%s"] * len(rows[0]))
            self.db.cursor().executemany(f"insert into chaos.{ledger} values ({places})".encode(), rows)


@pytest.mark.timeout(300 + 30 * EXAMPLES)
def test_whatever_is_done_to_jobs_the_database_is_as_the_model_says(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as server:
        server.execute(WITNESSES.encode())
        kind = type("MachineHere", (Machine,), {"dsn": dsn, "server": server})
        run_state_machine_as_test(
            kind,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize="PGWORKER_MACHINE_EXAMPLES" not in os.environ,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
