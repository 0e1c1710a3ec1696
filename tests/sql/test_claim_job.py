"""The claim of one job by its id: due or not, and never of what somebody else has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from pgworker.control.queues import pause_queues
from pgworker.db.adapters import ClaimingCursor
from pgworker.lifecycle.claim import claim_job, claimed_rows
from tests.sql.actors import DEADLINE, Connect, Held, Worker, ask, ended, enqueue, impatient, leases, statuses, waiting
from tests.sql.invariants import STORED, offences

TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)
RACES = 100


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


def claim(db: Connection[Any], job_id: UUID, *, tasks: tuple[str, ...] = ("t",), even_paused: bool = False) -> Held:
    lease_id, worker_id, cursor = uuid4(), uuid4(), ClaimingCursor(db)
    claim_job(
        cursor, job_id, lease_id=lease_id, worker_id=worker_id, ttl=60, tasks=list(tasks), even_paused=even_paused
    )
    return Held(lease_id, worker_id, claimed_rows(cursor))


def test_a_job_is_claimed_by_its_id_though_it_is_not_due_and_settled_like_any_other(db: Connection[Any]) -> None:
    others = enqueue(db, 2, priority=9)
    (job_id,) = enqueue(db, payload='{"n": 1}', queue="mail", run_at=TOMORROW, org_id="acme", priority=3)
    held = claim(db, job_id)
    [row] = held.rows
    assert (row.job_id, row.task, row.payload, row.execution, row.queue) == (job_id, "t", '{"n": 1}', 1, "mail")
    assert (row.priority, row.org_id, row.max_attempts, row.timeout_ms) == (3, "acme", 25, 1_800_000)
    assert leases(db) == {held.lease_id: [job_id]}
    assert ask(db, "select worker_id, slots, executions, failures from pgworker.job_leases") == [
        (held.worker_id, 1, [1], [0])
    ]
    assert Worker(db).settle(held.settlement())
    assert ended(db, job_id) == [(1, "succeeded", 0)]
    assert [job for job, _, _ in waiting(db)] == others


def test_a_paused_queue_another_task_and_what_does_not_wait_are_left_alone(db: Connection[Any]) -> None:
    paused, other, running = (enqueue(db, 1, **options)[0] for options in ({"queue": "mail"}, {"task": "u"}, {}))
    pause_queues(db, ["mail"])
    Worker(db).claim()
    for job in (paused, other, running, uuid4()):
        assert claim(db, job).ids == []
    assert len(leases(db)) == 1
    assert claim(db, paused, even_paused=True).ids == [paused]


def test_what_somebody_takes_this_moment_is_not_waited_for(db: Connection[Any], connect: Connect) -> None:
    (job_id,) = enqueue(db)
    theirs = connect()
    theirs.autocommit = False
    theirs.execute("select from pgworker.job_queue for update")
    with impatient(db):
        assert claim(db, job_id).ids == []
    theirs.rollback()
    assert claim(db, job_id).ids == [job_id]


def test_of_several_that_claim_a_job_at_once_exactly_one_has_it(db: Connection[Any], connect: Connect) -> None:
    ours, also_ours, worker = connect(), connect(), Worker(connect())
    with ThreadPoolExecutor(3) as threads:
        for _ in range(RACES):
            (job_id,) = enqueue(db)
            barrier = Barrier(3)

            def at_once(call: Any, *arguments: Any, barrier: Barrier = barrier) -> Held:
                barrier.wait(DEADLINE)
                held: Held = call(*arguments)
                return held

            asked = [(claim, ours, job_id), (claim, also_ours, job_id), (worker.claim, 1)]
            tries = [threads.submit(at_once, *each) for each in asked]
            held = [each for each in (one.result(DEADLINE) for one in tries) if each.rows]
            if not held:  # each stepped over a lock that another one held for a moment, and gave up again
                held = [claim(db, job_id)]
            assert [each.ids for each in held] == [[job_id]]
            assert statuses(db, [job_id]) == ["running"]
            assert not offences(db, STORED)
            assert worker.settle(held[0].settlement())
