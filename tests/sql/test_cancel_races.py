"""Cancels that race with whatever else can happen to a job, many times and as close as can be: one of the two is first,
and both are told the truth.

PGWORKER_RACES: how many races (10,000 take minutes). PGWORKER_RACES_SEED: to choose the dice.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from threading import Barrier
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from pgworker.lifecycle.cancel import cancel_job, cancel_jobs
from pgworker.lifecycle.reclaim import Reclaimable
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.settle import Next
from pgworker.model.selection import JobFilter
from pgworker.model.state import CancelAnswer, Outcome
from tests.sql.actors import DEADLINE, Connect, Held, Monitor, Worker, ask, enqueue
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

RACES = int(os.environ.get("PGWORKER_RACES", "480"))
SEED = int(os.environ.get("PGWORKER_RACES_SEED", str(time.time_ns() % 1_000_000)))
PAIRS = 2
JOBS = 3

History = list[tuple[int, str, str]]


class Against(Enum):
    """What a cancel races with; of each the ways in which a job may end, by what its cancel was told."""

    CLAIM = "a claim"
    SUCCESS = "a success"
    FAILURE = "a failure that requeues"
    PART = "a failure whose lease goes on"
    CRASH = "the reclaim of a running job"
    UNSTARTED = "the reclaim of a job that had not started"
    RELEASE = "a release"
    CANCEL = "another cancel"


WAITED = "cancelled while it waited"
KILLED = "killed by signal 9"
CANCELLED, REQUESTED, TOO_LATE = CancelAnswer

ENDS: dict[Against, dict[CancelAnswer, History]] = {
    Against.CLAIM: {CANCELLED: [(1, "cancelled", WAITED)], REQUESTED: [(1, "cancelled", "")]},
    Against.SUCCESS: {REQUESTED: [(1, "succeeded", "")], TOO_LATE: [(1, "succeeded", "")]},
    Against.FAILURE: {
        REQUESTED: [(1, "cancelled", "")],
        CANCELLED: [(1, "failed", ""), (2, "cancelled", WAITED)],
    },
    Against.PART: {
        REQUESTED: [(1, "cancelled", "")],
        CANCELLED: [(1, "failed", ""), (2, "cancelled", WAITED)],
    },
    Against.CRASH: {
        REQUESTED: [(1, "cancelled", KILLED)],
        CANCELLED: [(1, "crashed", KILLED), (2, "cancelled", WAITED)],
    },
    Against.UNSTARTED: {REQUESTED: [(1, "cancelled", KILLED)], CANCELLED: [(2, "cancelled", WAITED)]},
    Against.RELEASE: {REQUESTED: [(1, "cancelled", "")], CANCELLED: [(1, "cancelled", WAITED)]},
    Against.CANCEL: {CANCELLED: [(1, "cancelled", WAITED)], TOO_LATE: [(1, "cancelled", WAITED)]},
}
"""Numbers, outcomes and causes of all executions of a job."""


@dataclass(slots=True)
class Aim:
    """How much earlier one side must start for both to arrive together; found by trying."""

    lead: float = 0.0
    step: float = 0.002

    def learn(self, cancel_was_first: bool) -> None:
        self.lead += self.step if cancel_was_first else -self.step
        self.lead = max(-0.02, min(0.02, self.lead))
        self.step = max(0.00002, self.step * 0.93)


@dataclass(slots=True)
class Pair:
    """Two who race, each with a connection of its own, and what they were told."""

    number: int
    dsn: str
    dice: random.Random
    told: Counter[tuple[Against, bool, CancelAnswer]] = field(default_factory=Counter)
    enqueued: list[UUID] = field(default_factory=list)
    acknowledged: list[tuple[UUID, int, UUID]] = field(default_factory=list)
    cancelled: list[UUID] = field(default_factory=list)
    aims: dict[tuple[Against, bool], Aim] = field(default_factory=dict)

    def run(self, races: int) -> None:
        with (
            psycopg.connect(self.dsn, autocommit=True) as one,
            psycopg.connect(self.dsn, autocommit=True) as two,
            ThreadPoolExecutor(1) as other_thread,
        ):
            kinds = [(against, by_filter) for against in Against for by_filter in (False, True)]
            for race in range(races):
                against, by_filter = kinds[race % len(kinds)]
                Race(self, f"race-{self.number}-{race}", against, by_filter, one, two).run(other_thread)


@dataclass(frozen=True, slots=True)
class Race:
    """One race: of one job cancelled by its id, or of three cancelled by their queue."""

    pair: Pair
    queue: str
    against: Against
    by_filter: bool
    one: Connection[Any]
    two: Connection[Any]

    def run(self, other_thread: ThreadPoolExecutor) -> None:
        ids = enqueue(self.one, JOBS if self.by_filter else 1, queue=self.queue)
        self.pair.enqueued += ids
        if self.against is Against.PART:
            self.pair.enqueued += enqueue(self.one, task="behind", queue=self.queue)
        worker = Worker(self.one)
        waits = self.against in (Against.CLAIM, Against.CANCEL)
        held = None if waits else worker.claim(queues=[self.queue], tasks=["t", "behind"])
        barrier = Barrier(2, timeout=DEADLINE)
        aim = self.pair.aims.setdefault((self.against, self.by_filter), Aim())
        lead = aim.lead + self.pair.dice.gauss(0, 0.0001)

        def cancel() -> Counter[CancelAnswer]:
            barrier.wait()
            time.sleep(max(0, lead))
            return self.cancel(self.two, ids)

        cancelling = other_thread.submit(cancel)
        barrier.wait()
        time.sleep(max(0, -lead))
        other = self.oppose(worker, held, ids)
        told = cancelling.result(DEADLINE)
        self.finish(worker, other if self.against is Against.CLAIM else held, ids)
        if self.against is Against.CANCEL:
            assert told + other == {CANCELLED: len(ids), TOO_LATE: len(ids)}, (self, told, other)
        self.check(ids, told)
        first = {Against.CLAIM: CANCELLED, Against.CANCEL: CANCELLED}.get(self.against, REQUESTED)
        aim.learn(cancel_was_first=told[first] > 0)

    def cancel(self, connection: Connection[Any], ids: list[UUID]) -> Counter[CancelAnswer]:
        """How many jobs got which answer; one that was not found among many is too late."""
        if not self.by_filter:
            return Counter([cancel_job(connection, ids[0])])
        counts = cancel_jobs(connection, JobFilter(queue=self.queue, task="t"))
        late = len(ids) - counts.cancelled - counts.requested
        return Counter({CANCELLED: counts.cancelled, REQUESTED: counts.requested, TOO_LATE: late})

    def oppose(self, worker: Worker, held: Held | None, ids: list[UUID]) -> Any:
        if self.against is Against.CLAIM:
            return worker.claim(2, queues=[self.queue])
        if self.against is Against.CANCEL:
            return self.cancel(self.one, ids)
        assert held is not None
        return {
            Against.SUCCESS: lambda: self.settle(worker, held),
            Against.FAILURE: lambda: self.settle(worker, held, outcome=Outcome.FAILED, then=Next.REQUEUE),
            Against.PART: lambda: self.settle(worker, held, 1, len(ids), outcome=Outcome.FAILED, then=Next.REQUEUE),
            Against.CRASH: lambda: self.reclaim(held, [Outcome.CRASHED] * len(ids)),
            Against.UNSTARTED: lambda: self.reclaim(held, []),
            Against.RELEASE: lambda: insist(lambda: not release_jobs(self.one, held.lease_id, 1).is_busy),
        }[self.against]()

    def settle(self, worker: Worker, held: Held, *part: int, **how: Any) -> None:
        """A settle is never refused for a cancel."""
        settlement = held.settlement(*part, **how)
        assert worker.settle(settlement), self
        self.pair.acknowledged += [(run.job_id, run.execution, held.lease_id) for run in settlement.executions]

    def reclaim(self, held: Held, outcomes: list[Outcome]) -> None:
        lease = Reclaimable(held.lease_id, held.worker_id, 1, KILLED, only_expired=False)
        insist(lambda: Monitor(self.one).reclaim(lease, outcomes) is not None)

    def finish(self, worker: Worker, held: Held | None, ids: list[UUID]) -> None:
        """What was claimed in the race fails: if its cancel was told that it runs, it must not run again. The rest of a
        lease whose part was settled succeeds."""
        if self.against is Against.CLAIM and held is not None and held.rows:
            self.settle(worker, held, outcome=Outcome.FAILED, then=Next.REQUEUE)
        if self.against is Against.PART and held is not None:
            self.settle(worker, held, len(ids) + 1)

    def check(self, ids: list[UUID], told: Counter[CancelAnswer]) -> None:
        """The histories are those of the answers, and of no other."""
        ends = ENDS[self.against]
        histories = [history(self.one, job) for job in ids]
        expected = [ends[answer] for answer, jobs in told.items() for _ in range(jobs)]
        assert sorted(histories) == sorted(expected), (SEED, self, told)
        for answer, jobs in told.items():
            self.pair.told[self.against, self.by_filter, answer] += jobs
        if told[CANCELLED] == len(ids):
            self.pair.cancelled += ids


def history(connection: Connection[Any], job_id: UUID) -> History:
    columns = "execution, outcome::text, coalesce(cause, '')"
    return ask(connection, f"select {columns} from pgworker.job_executions where job_id = %s order by 1", job_id)


def insist(attempt: Callable[[], bool]) -> None:
    """A lease that the cancel has locked is passed over, and tried again at the next beat."""
    ends = time.monotonic() + DEADLINE
    while not attempt():
        assert time.monotonic() < ends


@pytest.mark.timeout(60 + RACES // 5)
def test_of_a_cancel_and_what_it_races_with_one_is_first_and_both_are_told(dsn: str, connect: Connect) -> None:
    observer = connect()
    observer.execute(WITNESSES.encode())
    pairs = [Pair(number, dsn, random.Random(f"{SEED} {number}")) for number in range(PAIRS)]
    with ThreadPoolExecutor(PAIRS) as threads:
        for race in [threads.submit(pair.run, RACES // PAIRS) for pair in pairs]:
            race.result()
    told = sum((pair.told for pair in pairs), Counter())
    for (against, by_filter, answer), jobs in sorted(told.items(), key=str):
        print(f"{against.value:45} {'by filter' if by_filter else 'by id':10} {answer.value:10} {jobs}")  # noqa: T201
    for pair in pairs:
        store(observer, pair)
    assert offences(observer, STORED) | offences(observer, WITNESSED) == {}, SEED
    possible = {(against, answer) for against in Against for answer in ENDS[against]}
    assert possible == {(against, answer) for against, _, answer in +told}, f"seed {SEED}: one side is always first"


def store(connection: Connection[Any], pair: Pair) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {
        "enqueued": [(job,) for job in pair.enqueued],
        "acknowledged": list(pair.acknowledged),
        "cancelled": [(job,) for job in pair.cancelled],
    }
    for table, lines in rows.items():
        with connection.cursor() as cursor, cursor.copy(f"copy chaos.{table} from stdin".encode()) as copy:
            for line in lines:
                copy.write_row(line)
