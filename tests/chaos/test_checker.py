"""The checker checked by hand: lives in which nothing is wrong, then one thing that is, which one invariant sees.

Those that the tests of the statements share are planted in `tests/sql/test_invariants.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.reclaim import Reclaimable
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from tests.chaos import checker
from tests.chaos.evidence import ACKED, ASKED, BEGAN, PLAN, PRODUCER, STARTED, Ledger
from tests.chaos.witness import NONE
from tests.sql.actors import Connect, Held, Monitor, Worker, enqueue

HOOK = "insert into pgworker.dead_letter_hooks values ('fail', 'bury', 'default', 5, 25, null)"


class Story:
    """Jobs and their lives, told in the database and in the ledgers."""

    def __init__(self, connect: Connect, directory: Path) -> None:
        self.connection = connect()
        self.monitor = Monitor(connect())
        self._workers = connect()
        self._directory = directory
        self._producer = Ledger(directory / PRODUCER)
        self._worker = Ledger(directory / "worker-1.ledger")
        self.jobs: dict[str, UUID] = {}

    def enqueue(
        self, name: str, key: int, more: str = "", *, task: str = "plain", says: bool = True, **how: Any
    ) -> UUID:
        if says:
            self._producer.note(PLAN, key)
        [job_id] = enqueue(self.connection, task=task, payload=f'{{"key": {key}{more}}}', **how)
        self._producer.note(ACKED, key, job_id)
        self.jobs[name] = job_id
        return job_id

    def claim(self, jobs: int = 1, *, says: Sequence[str] = (BEGAN, STARTED)) -> tuple[Worker, Held]:
        """By a worker of its own, which says that it begins and starts them all."""
        worker = Worker(self._workers)
        tasks = ["plain", "effect", "effect_parent", "child", "fail", "bury"]
        held = worker.claim(jobs, tasks=tasks)
        assert len(held.rows) == jobs
        for row in held.rows:
            key = json.loads(row.payload or "{}").get("key", NONE)
            for word in says:
                more = (key, row.org_id or NONE) if word == STARTED else ()
                self._worker.note(word, row.job_id, row.execution, held.lease_id, *more)
        return worker, held

    def run(self, *, says: Sequence[str] = (BEGAN, STARTED), **how: Any) -> None:
        """Claim one job and settle it."""
        worker, held = self.claim(says=says)
        assert worker.settle(held.settlement(**how))
        self._worker.note(ACKED, held.ids[0], held.rows[0].execution, held.lease_id)

    def fail(self, *, says: Sequence[str] = (BEGAN, STARTED), then: Next = Next.REQUEUE) -> None:
        self.run(says=says, outcome=Outcome.FAILED, then=then, error='{"type": "ConnectionError"}')

    def crash(self, jobs: int = 1, *, is_known: bool = True) -> None:
        """Claim jobs, start them all, and die of it; a monitor takes them back."""
        worker, held = self.claim(jobs)
        if is_known:
            worker.die()
        lease = Reclaimable(held.lease_id, worker.worker_id, 1, None, only_expired=False)
        assert self.monitor.reclaim(lease, [Outcome.CRASHED] * jobs)

    def cancel(self, job_id: UUID) -> None:
        self._producer.note(ASKED, job_id)
        cancel_job(self.connection, job_id)

    def offences(self) -> set[str]:
        checker.load(self.connection, self._directory)
        return set(checker.check(self.connection))

    def execute(self, statement: str) -> None:
        self.connection.execute(statement.encode(), self.jobs)


@pytest.fixture
def story(connect: Connect, tmp_path: Path) -> Story:
    """One of each: an effect, one that enqueues another, a retry, a dead letter and its hook, a crash."""
    told = Story(connect, tmp_path)
    checker.set_up(told.connection)
    told.execute(HOOK)
    done = told.enqueue("done", 1, task="effect")
    told.run()
    parent = told.enqueue("parent", 2, task="effect_parent")
    told.run()
    [told.jobs["child"]] = enqueue(told.connection, task="child", payload=f'{{"parent": "{parent}", "execution": 1}}')
    told.run()
    for job_id in (done, parent):
        told.connection.execute("insert into chaos.effect values (%s, 1, '')", [job_id])
    told.enqueue("retried", 3, ', "times": 1', task="fail", org_id="acme")
    told.fail()
    told.run()
    told.enqueue("dead", 4, ', "times": 3', task="fail", max_attempts=1)
    told.fail(then=Next.BURY)
    told.run()
    told.enqueue("crashed", 5)
    told.crash()
    told.run()
    return told


def test_lives_without_offence_have_none(story: Story) -> None:
    assert story.offences() == set()


def enqueued_twice(story: Story) -> None:
    story.enqueue("again", 1)
    story.run()


def unplanned(story: Story) -> None:
    story.enqueue("surprise", 77, says=False)
    story.run()


def taken_from_the_living(story: Story) -> None:
    story.enqueue("taken", 6)
    story.crash(is_known=False)
    story.run()


_A_LEASE = "(select min(lease_id::text)::uuid from chaos.leased)"


def started_after_its_cancel(story: Story) -> None:
    story.cancel(story.enqueue("cancelled", 6))
    story.execute(f"insert into chaos.started values (%(cancelled)s, 1, {_A_LEASE}, '6', '-', 'worker-1')")


def cancelled_unasked(story: Story) -> None:
    cancel_job(story.connection, story.enqueue("cancelled", 6))


def succeeded_where_it_fails(story: Story) -> None:
    story.enqueue("odd", 6, ', "times": 2', task="fail")
    story.run()


def succeeded_without_a_start(story: Story) -> None:
    story.enqueue("idle", 6)
    story.run(says=[BEGAN])


def charged_without_a_beginning(story: Story) -> None:
    story.enqueue("idle", 6)
    story.fail(says=[STARTED])
    story.run()


def charged_with_its_neighbour(story: Story) -> None:
    story.enqueue("one", 6)
    story.enqueue("other", 7)
    story.crash(2)
    story.run()
    story.run()


def tried_once_too_often(story: Story) -> None:
    story.enqueue("often", 6, max_attempts=1)
    story.fail()
    story.run()


def forgotten_why(story: Story) -> None:
    """Behind the back of the triggers, which would tell that a row has changed."""
    story.execute("set session_replication_role = replica")
    story.execute("update pgworker.job_executions set cause = null, error = null where outcome = 'crashed'")


def given_up_early(story: Story) -> None:
    story.enqueue("early", 6, ', "times": 3', task="fail", max_attempts=3)
    story.fail(then=Next.BURY)
    story.run()


Offence = str | Callable[[Story], None]

PLANTED: list[tuple[str, Offence]] = [
    ("I1: a job whose enqueue was acknowledged is not lost", "insert into chaos.acked values (9, gen_random_uuid())"),
    ("I1: what was enqueued once is there once", enqueued_twice),
    ("I1: nothing is there that nobody has planned", unplanned),
    (
        "I1: a job that ran is a job",
        f"insert into chaos.started values (gen_random_uuid(), 1, {_A_LEASE}, '-', '-', 'worker-1')",
    ),
    (
        "I1: what has succeeded or was cancelled never runs again",
        f"insert into chaos.started values (%(done)s, 2, {_A_LEASE}, '1', '-', 'worker-1')",
    ),
    (
        "I1: the hook of a dead letter is enqueued once",
        "update pgworker.jobs set payload = '{}' where payload ? 'dead'",
    ),
    ("I1: the hook of a dead letter is enqueued once", "truncate chaos.buried"),
    ("I2: a lease is taken only when its time is over or its worker has ended", taken_from_the_living),
    ("I3: what was cancelled while it waited did not start", started_after_its_cancel),
    ("I3: nothing is cancelled that nobody has asked for", cancelled_unasked),
    ("I3: what must fail has not succeeded", succeeded_where_it_fails),
    (
        "I3: what was recorded stays as it is",
        "update pgworker.job_executions set outcome = outcome where job_id = %(done)s",
    ),
    (
        "I3: an execution starts once",
        f"insert into chaos.started values (%(done)s, 1, {_A_LEASE}, '1', '-', 'worker-2')",
    ),
    (
        "I3: a claim is forgotten only by a server that crashed",
        "insert into chaos.started values (%(done)s, 1, gen_random_uuid(), '1', '-', 'worker-2')",
    ),
    ("I3: an execution that did not start did not succeed", succeeded_without_a_start),
    ("I4: what has not begun is not charged", charged_without_a_beginning),
    ("I4: a reclaim charges no more than could run at once", charged_with_its_neighbour),
    ("I4: nothing runs whose attempts are used up", tried_once_too_often),
    ("I4: no job is given up before its attempts are used up", given_up_early),
    (
        "I5: no execution is claimed before the one before it was recorded",
        "update chaos.leased set moment = 0 where %(retried)s = any (job_ids) and executions = '{2}'",
    ),
    (
        "I6: a job enqueued by another one is there if and only if that one succeeded",
        "update pgworker.jobs set task = 'plain' where id = %(child)s",
    ),
    (
        "I6: a job enqueued by another one is there if and only if that one succeeded",
        """update pgworker.jobs set payload = payload || '{"execution": 2}' where id = %(child)s""",
    ),
    (
        "I7: what a worker held that has ended is taken back in time",
        "update chaos.lease_taken set at = at + interval '1 minute' where worker_ended_at is not null",
    ),
    (
        "I7: a worker that has drained holds nothing",
        "update chaos.lease_taken set worker_ended_how = 'worker 0 (pid 1) ended, as asked: stop'",
    ),
    (
        "I8: a job runs with its own arguments and for its own org",
        "update pgworker.jobs set org_id = 'globex' where id = %(retried)s",
    ),
    ("I8: an effect is of the org of its job", "update chaos.effect set org_id = 'acme' where job_id = %(done)s"),
    ("a crash is explained", forgotten_why),
]


@pytest.mark.parametrize(("invariant", "offence"), PLANTED)
def test_each_invariant_of_the_ledgers_sees_its_offence_and_no_other_does(
    story: Story, invariant: str, offence: Offence
) -> None:
    if isinstance(offence, str):
        story.execute(offence)
    else:
        offence(story)
    assert story.offences() == {invariant}


def test_every_invariant_of_the_ledgers_has_been_seen_to_break() -> None:
    assert {invariant for invariant, _ in PLANTED} == checker.LEDGERS.keys()


def test_what_is_not_always_asked_is_an_invariant() -> None:
    assert checker.INVARIANTS.keys() >= checker.BY_THE_CLOCK | checker.BY_A_CRASH
