"""The checker checked: each invariant sees the defect that it is there for."""

from __future__ import annotations

import pytest

from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome
from tests.sql.actors import Connect, Worker, enqueue
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

AT_THE_END = "I1: at the end nothing waits or runs"

EXECUTION = """
    insert into pgworker.job_executions (job_id, execution, outcome, failures, lease_id, started_at, finished_at)
    values (%({job})s, {execution}, '{outcome}', {failures}, {lease},
            clock_timestamp() - interval '{ago}', clock_timestamp())
"""


def execution(
    job: str, number: int, outcome: str, *, failures: int = 0, lease: str = "%(lease)s", ago: str = "0 s"
) -> str:
    return EXECUTION.format(job=job, execution=number, outcome=outcome, failures=failures, lease=lease, ago=ago)


PLANTED = [
    ("I1: every job is in exactly one place", "delete from pgworker.job_queue"),
    (
        "I1: every job is in exactly one place",
        "insert into pgworker.job_queue values (%(done)s, now(), 3, 5, 0, 'default', 't', null)",
    ),
    ("I1: whatever is in a place has its job", "delete from pgworker.jobs where id = %(runs)s"),
    ("I1: an acknowledged enqueue is stored", "insert into chaos.enqueued values (gen_random_uuid())"),
    ("I1: a rolled-back enqueue is not", "insert into chaos.rolled_back values (%(waits)s)"),
    (AT_THE_END, "select"),
    ("I2: what a lease holds was settled by no other", execution("runs", 1, "failed", failures=1, lease="null")),
    ("I2: nothing is settled after its lease was lost", execution("waits", 3, "succeeded", failures=1)),
    ("I2: a settle that was refused left no row", "insert into chaos.refused values (%(done)s, 1, %(lease)s)"),
    (
        "I3: a position of a lease is recorded once",
        "update pgworker.job_executions set position = 1, lease_id = %(lease)s",
    ),
    ("I3: execution numbers go on", "update pgworker.job_queue set execution = 1"),
    (
        "I3: a settle that was acknowledged has its row",
        "insert into chaos.acknowledged values (%(runs)s, 1, %(lease)s)",
    ),
    (
        "I3: a settle that was acknowledged has its row",
        """with reclaimed as (update pgworker.job_executions set cause = 'killed' where job_id = %(done)s)
           insert into chaos.acknowledged values (%(done)s, 1, %(lease)s)""",
    ),
    (
        "I3: a job cancelled while it waited never runs again",
        "with cancelled as (insert into chaos.cancelled values (%(done)s)), again as ("
        + execution("done", 2, "cancelled")
        + ")"
        + execution("done", 3, "succeeded"),
    ),
    ("I4: no more failures than attempts", "update pgworker.job_queue set failures = 25"),
    ("I4: no more failures than attempts", "update pgworker.job_executions set failures = 26"),
    (
        "I4: failures count the executions that are charged",
        "update pgworker.job_executions set outcome = 'crashed' where failures = 0",
    ),
    (
        "I4: failures count the executions that are charged",
        "update pgworker.job_executions set failures = 2 where failures = 1",
    ),
    ("I5: executions of a job never overlap", execution("done", 2, "succeeded", ago="1 minute")),
    (
        "nothing is kept of what jobs said that have ended for good",
        "insert into pgworker.job_progress values (%(done)s, 1, 0.5, '', null, now())",
    ),
    (
        "I6: an effect happened if and only if its execution succeeded, once",
        "insert into chaos.effect values (%(done)s, 1)",
    ),
    ("I6: an effect happened if and only if its execution succeeded, once", "truncate chaos.effect"),
    (
        "I6: an effect happened if and only if its execution succeeded, once",
        "insert into chaos.effect values (%(waits)s, 1)",
    ),
]


@pytest.mark.parametrize(("invariant", "defect"), PLANTED)
def test_each_invariant_sees_a_defect_that_is_planted_for_it(connect: Connect, invariant: str, defect: str) -> None:
    observer, worker = connect(), Worker(connect())
    observer.execute(WITNESSES.encode())
    [done] = enqueue(observer, task="effect")
    lease = worker.claim(tasks=["effect"])
    assert worker.settle(lease.settlement())
    observer.execute("insert into chaos.effect values (%s, 1)", [done])
    [waits] = enqueue(observer)
    assert worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60))
    [runs] = enqueue(observer)
    worker.claim()
    so_far = {name: query for name, query in WITNESSED.items() if name != AT_THE_END}
    assert offences(observer, STORED) | offences(observer, so_far) == {}
    observer.execute(defect.encode(), {"done": done, "waits": waits, "runs": runs, "lease": lease.lease_id})
    assert invariant in offences(observer, STORED) | offences(observer, WITNESSED)


def test_every_invariant_has_been_seen_to_break() -> None:
    assert {name for name, _ in PLANTED} == STORED.keys() | WITNESSED.keys()
