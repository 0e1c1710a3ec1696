"""What happens when two or three of the verbs meet, each on a real connection, with real locks."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from uuid import UUID, uuid4

import psycopg
import pytest

from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.dead_letters import discard_dead_letters, requeue_dead_letters
from pgworker.lifecycle.heartbeat import WorkerProcess, beat_workers
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.renew import Renewal, renew_leases
from pgworker.lifecycle.settle import Next, find_unsettled, is_settled, settle_jobs, settle_success
from pgworker.linux.floors import FloorsSeen
from pgworker.model.state import CancelAnswer, Outcome
from pgworker.sql.load import query
from tests.sql.actors import (
    DEADLINE,
    POOL,
    Blocked,
    Connect,
    Held,
    Monitor,
    Worker,
    again,
    ask,
    ended,
    enqueue,
    impatient,
    leases,
    now,
    statuses,
    waiting,
)

LOW, HIGH = UUID(int=1), UUID(int=(1 << 128) - 1)


def is_fenced(worker: Worker, held: Held, first: int = 1, last: int | None = None) -> bool:
    """Whether a settle by this lease is told so."""
    settlement = held.settlement(first, last)
    assert not worker.settle(settlement)
    return bool(find_unsettled(worker.connection.cursor(), settlement))


# -- a: the reply to a claim is lost


def test_a_claim_whose_reply_was_lost_is_released_whole_by_its_lease_id(connect: Connect) -> None:
    worker, ids = Worker(connect()), enqueue(connect(), 3)
    forgotten = uuid4()
    worker.claim(lease_id=forgotten)
    reconnected = Worker(connect(), worker.worker_id)
    answer = release_jobs(reconnected.connection, forgotten, 1)
    assert [(lane.queue, lane.priority, lane.job_id, lane.jobs) for lane in answer.lanes] == [("default", 5, ids[0], 3)]
    assert leases(reconnected.connection) == {}
    again = reconnected.claim()
    assert [(row.job_id, row.execution, row.failures) for row in again.rows] == [(job, 1, 0) for job in ids]


def test_a_claim_that_commits_after_its_release_is_not_renewed_with_the_others_and_ends_by_itself(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 2)
    lost, worker = Worker(connect()), Worker(connect())
    with lost.connection.transaction():
        unknown = lost.claim(1, ttl=0).lease_id
        assert release_jobs(worker.connection, unknown, 1) == release_jobs(worker.connection, uuid4(), 1)
        with impatient(worker.connection):
            held = worker.claim(1)
    assert list(renew_leases(worker.connection, [held.lease_id], 60)) == [held.lease_id]
    [lease] = Monitor(connect()).reclaimable(by_expiry=True)
    assert (lease.lease_id, lease.only_expired) == (unknown, True)
    assert Monitor(connect()).reclaim(lease)
    assert waiting(worker.connection) == [(ids[0], 2, 0)]


def test_what_a_worker_held_that_has_ended_is_its_own_pools_to_take_back_while_that_beats(connect: Connect) -> None:
    """Which knows what ran and why it ended; others would charge for whatever may have run."""
    enqueue(connect(), 1)
    worker = Worker(connect())
    held = worker.claim(1)
    worker.die()
    other = Monitor(connect(), replace(POOL, pool_id=uuid4()))
    assert other.reclaimable() == []
    assert [lease.lease_id for lease in Monitor(connect()).reclaimable()] == [held.lease_id]
    other.connection.execute("update pgworker.worker_heartbeats set beat_at = beat_at - interval '11 seconds'")
    assert [lease.lease_id for lease in other.reclaimable()] == [held.lease_id]


# -- b: a settle hangs


def test_a_settle_that_hangs_in_a_transaction_holds_up_no_renewal_not_even_of_its_own_lease(connect: Connect) -> None:
    enqueue(connect(), 4)
    worker, handler, monitor = Worker(connect()), connect(), connect()
    leases_held = [worker.claim(2, ttl=0) for _ in range(2)]
    with handler.transaction():
        settle_jobs(handler.cursor(), leases_held[0].settlement(1, 1), time.monotonic_ns())
        with impatient(monitor):
            renewed = renew_leases(monitor, [held.lease_id for held in leases_held], 60)
    assert renewed == {held.lease_id: Renewal([], False) for held in leases_held}
    assert Monitor(monitor).reclaimable(by_expiry=True) == []


def test_a_worker_stopped_between_the_settle_of_a_transaction_and_its_commit_keeps_nobody_from_its_lease(
    connect: Connect,
) -> None:
    jobs = enqueue(connect(), 2)
    worker, handler, monitor = Worker(connect()), connect(), Monitor(connect())
    held = worker.claim(2, ttl=0)
    handler.execute("begin")
    handler.execute("set local idle_in_transaction_session_timeout = '10min'")
    assert settle_success(handler.cursor(), held.settlement(1, 1), time.monotonic_ns(), commit_within_ms=3000)
    assert monitor.reclaim_all(by_expiry=True) == []
    deadline = time.monotonic() + DEADLINE
    while not monitor.reclaim_all(by_expiry=True):
        assert time.monotonic() < deadline, "a lease that nobody locks any more"
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        handler.execute("commit")
    assert statuses(monitor.connection, jobs) == ["pending"] * 2


def test_a_hanging_settle_and_a_renewal_leave_the_settled_lease_whole(connect: Connect) -> None:
    [job, other] = enqueue(connect(), 2)
    worker, handler = Worker(connect()), connect()
    held = worker.claim()
    with handler.transaction():
        settle_jobs(handler.cursor(), held.settlement(1, 1), time.monotonic_ns())
        with impatient(worker.connection):
            renew_leases(worker.connection, [held.lease_id], 60)
    assert statuses(handler, [job, other]) == ["succeeded", "running"]
    assert worker.settle(held.settlement(2))
    assert leases(handler) == {}


@pytest.mark.parametrize("first_settled", [0, 1])
def test_settles_of_two_leases_and_a_renewal_of_both_never_deadlock(connect: Connect, first_settled: int) -> None:
    """Partial settles lock nothing that a renewal needs; what a settle is ending is skipped, not waited for."""
    enqueue(connect(), 4)
    worker, handler, monitor = Worker(connect()), connect(), connect()
    held = [worker.claim(2, lease_id=lease_id) for lease_id in (HIGH, LOW)][::-1]
    in_order = [held[first_settled], held[1 - first_settled]]
    with handler.transaction():
        settle_jobs(handler.cursor(), in_order[0].settlement(1, 1), time.monotonic_ns())
        with impatient(monitor):
            renewed = renew_leases(monitor, [lease.lease_id for lease in held], 60)
        assert renewed == {LOW: Renewal([], False), HIGH: Renewal([], False)}
        settle_jobs(handler.cursor(), in_order[1].settlement(1, 1), time.monotonic_ns())
    with handler.transaction():
        settle_jobs(handler.cursor(), held[0].settlement(2), time.monotonic_ns())
        with impatient(monitor):
            renewed = renew_leases(monitor, [lease.lease_id for lease in reversed(held)], 60)
        settle_jobs(handler.cursor(), held[1].settlement(2), time.monotonic_ns())
    assert [renewed[lease.lease_id].is_busy for lease in held] == [True, False]
    assert renew_leases(monitor, [lease.lease_id for lease in held], 60) == {}


def test_a_lease_that_somebody_is_ending_is_busy_and_holds_up_the_renewal_of_no_other(connect: Connect) -> None:
    enqueue(connect(), 2)
    worker, handler, monitor = Worker(connect()), connect(), connect()
    ending, staying = worker.claim(1), worker.claim(1)
    with handler.transaction(), impatient(monitor):
        settle_jobs(handler.cursor(), ending.settlement(), time.monotonic_ns())
        renewed = renew_leases(monitor, [ending.lease_id, staying.lease_id], 60)
    assert renewed == {ending.lease_id: Renewal([], True), staying.lease_id: Renewal([], False)}
    assert list(renew_leases(monitor, [ending.lease_id, staying.lease_id], 60)) == [staying.lease_id]


# -- c: released, claimed anew, and settled by the old lease


@pytest.mark.parametrize("ends", [False, True])
def test_a_settle_that_waited_for_the_release_of_its_job_is_rejected(connect: Connect, ends: bool) -> None:
    [_, job] = enqueue(connect(), 2)
    old, monitor, new = Worker(connect()), connect(), Worker(connect())
    stale = old.claim()
    settlement = stale.settlement(2, ends=ends)
    with monitor.transaction():
        assert not release_jobs(monitor, stale.lease_id, 2).is_busy
        late = Blocked(old.connection, lambda: old.settle(settlement))
    assert not late.answer()
    assert find_unsettled(old.connection.cursor(), settlement) == settlement.executions
    true = new.claim()
    assert [(row.job_id, row.execution) for row in true.rows] == [(job, 1)]
    assert ended(monitor, job) == []
    assert new.settle(true.settlement())
    assert ended(monitor, job) == [(1, "succeeded", 0)]


def test_the_old_holder_of_a_job_that_was_released_and_claimed_anew_is_rejected_and_its_true_holder_unharmed(
    connect: Connect,
) -> None:
    [_, job] = enqueue(connect(), 2)
    old, new = Worker(connect()), Worker(connect())
    stale = old.claim()
    release_jobs(connect(), stale.lease_id, 2)
    true = new.claim()
    for retried in range(2):
        assert is_fenced(old, stale, 2), retried
    assert leases(old.connection)[true.lease_id] == [job]
    assert new.settle(true.settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert is_fenced(old, stale, 2)
    assert ended(old.connection, job) == [(1, "failed", 1)]
    assert waiting(old.connection) == [(job, 2, 1)]


def test_a_release_does_not_wait_for_a_settle_under_way_but_says_that_it_is_busy(connect: Connect) -> None:
    enqueue(connect(), 2)
    worker, handler, monitor = Worker(connect()), connect(), connect()
    held = worker.claim()
    with handler.transaction():
        settle_jobs(handler.cursor(), held.settlement(1, 1), time.monotonic_ns())
        with impatient(monitor):
            assert release_jobs(monitor, held.lease_id, 2).is_busy
    assert waiting(monitor) == []
    assert not release_jobs(monitor, held.lease_id, 2).is_busy
    assert [job for job, *_ in waiting(monitor)] == held.ids[1:]


# -- d: two partial settles of one lease at once


def test_the_clerk_and_a_transaction_that_settle_parts_of_one_lease_at_once_leave_no_lease_behind(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 3)
    clerk, handler = Worker(connect()), connect()
    held = clerk.claim()
    with handler.transaction():
        settle_jobs(handler.cursor(), held.settlement(2, 2), time.monotonic_ns())
        with impatient(clerk.connection):
            assert clerk.settle(held.settlement(1, 1))
        end = Blocked(clerk.connection, lambda: clerk.settle(held.settlement(3, 3)))
    assert end.answer()
    assert leases(handler) == {}
    assert statuses(handler, ids) == ["succeeded"] * 3


def test_a_lease_whose_last_position_was_settled_by_a_transaction_ends_by_a_settlement_of_nothing(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 2)
    clerk, handler = Worker(connect()), connect()
    held = clerk.claim()
    assert clerk.settle(held.settlement(1, 1))
    with handler.transaction():
        settle_jobs(handler.cursor(), held.settlement(2, ends=False), time.monotonic_ns())
    assert clerk.settle(held.settlement(3, 2, ends=True))
    assert leases(handler) == {}
    assert statuses(handler, ids) == ["succeeded"] * 2


# -- e: a settle whose reply was lost is sent again


def test_a_settle_sent_again_after_its_retry_runs_elsewhere_makes_no_second_copy_and_is_no_lost_lease(
    connect: Connect,
) -> None:
    [failing, _, fresh] = enqueue(connect(), 3)
    worker, elsewhere = Worker(connect()), Worker(connect())
    held = worker.claim(2)
    settlement = held.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE)
    assert worker.settle(settlement)
    retry = elsewhere.claim(1, floors=FloorsSeen([0] * 10, [0] * 10))
    assert [(row.job_id, row.execution) for row in retry.rows] == [(fresh, 1)]
    retry = elsewhere.claim(1)
    assert [(row.job_id, row.execution) for row in retry.rows] == [(failing, 2)]
    [more] = enqueue(elsewhere.connection)

    reconnected = Worker(connect(), worker.worker_id)
    cursor = reconnected.connection.cursor()
    with reconnected.connection.pipeline():
        settle_jobs(cursor, again(settlement), time.monotonic_ns())
        claimed = reconnected.claim()
        assert not is_settled(cursor, settlement)
    assert find_unsettled(cursor, settlement) == []
    assert claimed.ids == [more]
    assert waiting(cursor.connection) == []
    assert [held for held in leases(cursor.connection).values() if failing in held] == [held.ids, [failing]]
    assert elsewhere.settle(retry.settlement())
    assert ended(cursor.connection, failing) == [(1, "failed", 1), (2, "succeeded", 1)]


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED])
def test_the_end_of_a_lease_sent_again_is_no_lost_lease(connect: Connect, outcome: Outcome) -> None:
    enqueue(connect(), 2)
    worker = Worker(connect())
    held = worker.claim()
    settlement = held.settlement(outcome=outcome, then=Next.BURY if outcome.is_charged else Next.END)
    assert worker.settle(settlement)
    for _ in range(2):
        assert not worker.settle(again(settlement))
        assert find_unsettled(worker.connection.cursor(), settlement) == []
    counts = "select (select count(*) from pgworker.job_executions), (select count(*) from pgworker.dead_letter_jobs)"
    assert ask(worker.connection, counts) == [(2, 2 if outcome.is_charged else 0)]


def test_a_settle_sent_again_while_the_first_is_still_committing_waits_and_fails_and_then_records_nothing(
    connect: Connect,
) -> None:
    [job, _] = enqueue(connect(), 2)
    worker, reconnected = Worker(connect()), Worker(connect())
    held = worker.claim()
    settlement = held.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE)
    with worker.connection.transaction():
        assert worker.settle(settlement)
        second = Blocked(reconnected.connection, lambda: reconnected.settle(again(settlement)))
    with pytest.raises(psycopg.errors.UniqueViolation):
        second.answer()
    assert not reconnected.settle(again(settlement))
    assert find_unsettled(reconnected.connection.cursor(), settlement) == []
    assert waiting(reconnected.connection) == [(job, 2, 1)]


def test_a_settle_that_does_not_say_it_is_sent_again_writes_nothing_twice(connect: Connect) -> None:
    enqueue(connect(), 2)
    worker = Worker(connect())
    settlement = worker.claim().settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE)
    assert worker.settle(settlement)
    with pytest.raises(psycopg.errors.UniqueViolation):
        worker.settle(settlement)
    assert len(waiting(worker.connection)) == 1


# -- f: a dead worker's claim commits


def test_a_claim_of_a_dead_worker_that_commits_after_its_reclaim_is_found_at_the_next_look(connect: Connect) -> None:
    ids = enqueue(connect(), 4)
    worker, monitor = Worker(connect()), Monitor(connect())
    worker.claim(2)
    dying = Worker(connect(), worker.worker_id)
    with dying.connection.transaction():
        dying.claim(2)
        worker.die()
        assert [len(lease.jobs) for lease in monitor.reclaim_all()] == [2]
        assert monitor.reclaimable() == []
    [late] = monitor.reclaim_all()
    assert [(job.job_id, job.outcome, job.failures) for job in late.jobs] == [(job, None, 0) for job in ids[2:]]
    assert waiting(monitor.connection) == [(job, 2, 0) for job in ids]


def test_a_heartbeat_under_way_does_not_raise_the_dead(connect: Connect) -> None:
    enqueue(connect())
    worker, monitor = Worker(connect()), Monitor(connect())
    worker.claim()
    beat = "insert into pgworker.worker_heartbeats select %s, %s, 'host', 'boot', 1, 0, '{}', now(), now()"
    ask(monitor.connection, beat + " returning 1", worker.worker_id, POOL.pool_id)
    beating = connect()
    with monitor.connection.transaction():
        monitor.connection.execute("update pgworker.worker_heartbeats set ended_at = now(), ended_how = 'killed'")
        beats = [WorkerProcess(worker.worker_id, 1, 0, 0)]
        beating_on = Blocked(beating, lambda: beat_workers(beating, POOL, beats))
    beating_on.answer()
    assert [lease.ended_how for lease in monitor.reclaimable()] == ["killed"]


# -- g: nobody is left to say what ended


def test_when_worker_and_monitor_died_together_another_pool_charges_only_what_could_have_been_running(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 5, max_attempts=3)
    dead, other = Worker(connect()), Monitor(connect())
    held = dead.claim(ttl=0, slots=2)
    assert dead.settle(held.settlement(1, 1))
    [lease] = other.reclaimable(by_expiry=True)
    reclaimed = other.reclaim(lease, assumed_running=lease.slots)
    assert reclaimed is not None
    assert [(job.job_id, job.outcome, job.failures) for job in reclaimed.jobs] == [
        (ids[1], Outcome.CRASHED, 1),
        (ids[2], Outcome.CRASHED, 1),
        (ids[3], None, 0),
        (ids[4], None, 0),
    ]
    assert statuses(other.connection, ids) == ["succeeded", "failed", "failed", "pending", "pending"]
    assert waiting(other.connection) == [(ids[1], 2, 1), (ids[2], 2, 1), (ids[3], 2, 0), (ids[4], 2, 0)]


def test_two_reclaimers_of_one_lease_give_its_jobs_back_once(connect: Connect) -> None:
    ids = enqueue(connect(), 2)
    worker, one, two = Worker(connect()), Monitor(connect()), Monitor(connect())
    worker.claim()
    worker.die()
    [lease], [same] = one.reclaimable(), two.reclaimable()

    def second() -> None:
        with impatient(two.connection):
            assert two.reclaim(same) is None

    assert one.reclaim(lease, meanwhile=second)
    assert two.reclaim(same) is None
    assert waiting(one.connection) == [(job, 2, 0) for job in ids]


def test_a_reclaim_leaves_a_lease_with_a_settle_under_way_for_later(connect: Connect) -> None:
    ids = enqueue(connect(), 2)
    worker, monitor = Worker(connect()), Monitor(connect())
    held = worker.claim()
    worker.die()
    [lease] = monitor.reclaimable()
    for position in (1, 2):
        with impatient(monitor.connection), worker.connection.transaction(force_rollback=position == 2):
            assert worker.settle(held.settlement(position, position))
            assert monitor.reclaim(lease) is None
    assert monitor.reclaim(lease)
    assert statuses(monitor.connection, ids) == ["succeeded", "pending"]


def test_a_settle_that_waited_for_the_reclaim_of_its_lease_is_rejected(connect: Connect) -> None:
    ids = enqueue(connect(), 2)
    worker, monitor = Worker(connect()), Monitor(connect())
    held = worker.claim(ttl=0)
    [lease] = monitor.reclaimable(by_expiry=True)
    late: list[Blocked[bool]] = []
    settlement = held.settlement()
    assert monitor.reclaim(
        lease, meanwhile=lambda: late.append(Blocked(worker.connection, lambda: worker.settle(settlement)))
    )
    assert not late[0].answer()
    assert find_unsettled(worker.connection.cursor(), settlement) == settlement.executions
    assert statuses(monitor.connection, ids) == ["pending", "pending"]


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.LOST, None])
def test_a_zombie_that_settles_what_was_reclaimed_is_told_so_though_the_history_names_its_lease(
    connect: Connect, outcome: Outcome | None
) -> None:
    [job] = enqueue(connect())
    zombie, monitor, other = Worker(connect()), Monitor(connect()), Worker(connect())
    held = zombie.claim(ttl=0)
    [lease] = monitor.reclaimable(by_expiry=True)
    assert monitor.reclaim(lease, [outcome])
    assert is_fenced(zombie, held)
    retry = other.claim()
    assert is_fenced(zombie, held)
    assert other.settle(retry.settlement())
    assert is_fenced(zombie, held)
    charged = 1 if outcome is Outcome.CRASHED else 0
    reclaimed = [] if outcome is None else [(1, outcome.value, charged)]
    assert ended(monitor.connection, job) == [*reclaimed, (2, "succeeded", charged)]


# -- h: an outage longer than a lease


def test_after_an_outage_a_lease_that_nobody_reclaimed_is_renewed_and_settled_as_if_nothing_had_been(
    connect: Connect,
) -> None:
    [job] = enqueue(connect())
    worker, other = Worker(connect()), Monitor(connect())
    held = worker.claim(ttl=0)
    [lease] = other.reclaimable(by_expiry=True)
    assert list(renew_leases(worker.connection, [held.lease_id], 60)) == [held.lease_id]
    assert other.reclaim(lease, assumed_running=1) is None
    assert worker.settle(held.settlement())
    assert ended(worker.connection, job) == [(1, "succeeded", 0)]


def test_a_renewal_under_way_saves_an_expired_lease_from_its_reclaimer(connect: Connect) -> None:
    enqueue(connect())
    worker, other, monitor = Worker(connect()), Monitor(connect()), connect()
    held = worker.claim(ttl=0)
    [lease] = other.reclaimable(by_expiry=True)
    with monitor.transaction():
        renew_leases(monitor, [held.lease_id], 60)
        with impatient(other.connection):
            assert other.reclaim(lease, assumed_running=1) is None
    assert other.reclaim(lease, assumed_running=1) is None
    assert worker.settle(held.settlement())


def test_a_renewal_is_told_that_a_lease_is_busy_while_it_is_reclaimed_and_lost_after_that(connect: Connect) -> None:
    enqueue(connect())
    worker, other, monitor = Worker(connect()), Monitor(connect()), connect()
    held = worker.claim(ttl=0)
    [lease] = other.reclaimable(by_expiry=True)
    meanwhile: list[object] = []
    other.reclaim(lease, meanwhile=lambda: meanwhile.append(renew_leases(monitor, [held.lease_id], 60)))
    assert meanwhile == [{held.lease_id: Renewal([], True)}]
    assert renew_leases(monitor, [held.lease_id], 60) == {}
    assert is_fenced(worker, held)


# -- i: cancel against everything


def test_a_cancel_that_waited_for_a_claim_reaches_the_running_job(connect: Connect) -> None:
    [job] = enqueue(connect())
    worker, user = Worker(connect()), connect()
    with worker.connection.transaction():
        held = worker.claim()
        cancel = Blocked(user, lambda: cancel_job(user, job))
    assert cancel.answer() is CancelAnswer.REQUESTED
    assert renew_leases(user, [held.lease_id], 60) == {held.lease_id: Renewal([1], False)}


def test_a_cancel_that_waited_for_a_claim_that_rolled_back_cancels_the_waiting_job(connect: Connect) -> None:
    [job] = enqueue(connect())
    worker, user = Worker(connect()), connect()
    with worker.connection.transaction(force_rollback=True):
        worker.claim()
        cancel = Blocked(user, lambda: cancel_job(user, job))
    assert cancel.answer() is CancelAnswer.CANCELLED
    assert worker.claim().rows == []


def test_a_claim_passes_over_a_job_whose_cancel_is_committing(connect: Connect) -> None:
    [job, other] = enqueue(connect(), 2)
    worker, user = Worker(connect()), connect()
    with user.transaction():
        user.execute(query("cancel_waiting_jobs"), {"job_ids": [job]})
        with impatient(worker.connection):
            assert worker.claim().ids == [other]
    assert ended(user, job) == [(1, "cancelled", 0)]


@pytest.mark.parametrize("ends", [False, True])
def test_a_cancel_that_waited_for_a_failure_to_requeue_its_job_cancels_the_retry(connect: Connect, ends: bool) -> None:
    ids = enqueue(connect(), 1 if ends else 2)
    worker, user = Worker(connect()), connect()
    held = worker.claim()
    with worker.connection.transaction():
        assert worker.settle(held.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE))
        cancel = Blocked(user, lambda: cancel_job(user, ids[0]))
    assert cancel.answer() is CancelAnswer.CANCELLED
    assert ended(user, ids[0]) == [(1, "failed", 1), (2, "cancelled", 1)]
    assert waiting(user) == []


@pytest.mark.parametrize("ends", [False, True])
def test_a_cancel_that_waited_for_its_job_to_succeed_is_too_late(connect: Connect, ends: bool) -> None:
    ids = enqueue(connect(), 1 if ends else 2)
    worker, user = Worker(connect()), connect()
    held = worker.claim()
    with worker.connection.transaction():
        assert worker.settle(held.settlement(1, 1))
        cancel = Blocked(user, lambda: cancel_job(user, ids[0]))
    assert cancel.answer() is CancelAnswer.TOO_LATE
    assert ask(user, "select cancelled from pgworker.job_leases") == ([] if ends else [[]])


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SNOOZED, Outcome.SUCCEEDED])
def test_a_settle_that_waited_for_a_cancel_ends_the_job_instead_of_requeueing_it(
    connect: Connect, outcome: Outcome
) -> None:
    [job] = enqueue(connect())
    worker, user = Worker(connect()), connect()
    held = worker.claim()
    then = Next.END if outcome is Outcome.SUCCEEDED else Next.REQUEUE
    with user.transaction():
        assert ask(user, "select true from pgworker.job_leases for update") == [True]
        user.execute("update pgworker.job_leases set cancelled = job_ids")
        late = Blocked(worker.connection, lambda: worker.settle(held.settlement(outcome=outcome, then=then)))
    assert late.answer()
    assert statuses(user, [job]) == ["succeeded" if outcome is Outcome.SUCCEEDED else "cancelled"]
    assert waiting(user) == []


def test_a_cancel_that_waited_for_a_reclaim_cancels_what_went_back(connect: Connect) -> None:
    ids = enqueue(connect(), 2)
    worker, monitor, user = Worker(connect()), Monitor(connect()), connect()
    worker.claim()
    worker.die()
    [lease] = monitor.reclaimable()
    late: list[Blocked[CancelAnswer]] = []
    monitor.reclaim(
        lease,
        [Outcome.CRASHED],
        meanwhile=lambda: late.append(Blocked(user, lambda: cancel_job(user, ids[0]))),
    )
    assert late[0].answer() is CancelAnswer.CANCELLED
    assert ended(user, ids[0]) == [(1, "crashed", 1), (2, "cancelled", 1)]
    assert waiting(user) == [(ids[1], 2, 0)]


def test_a_reclaim_and_a_release_record_what_was_cancelled_instead_of_giving_it_back(connect: Connect) -> None:
    ids = enqueue(connect(), 4)
    worker, monitor = Worker(connect()), Monitor(connect())
    held = worker.claim()
    for job in (ids[0], ids[1], ids[3]):
        assert cancel_job(monitor.connection, job) is CancelAnswer.REQUESTED
    release_jobs(monitor.connection, held.lease_id, 3)
    worker.die()
    [lease] = monitor.reclaimable()
    assert monitor.reclaim(lease, [Outcome.CRASHED])
    assert statuses(monitor.connection, ids) == ["cancelled", "cancelled", "pending", "cancelled"]
    assert waiting(monitor.connection) == [(ids[2], 1, 0)]


def test_a_cancel_that_waited_for_a_release_cancels_what_went_back(connect: Connect) -> None:
    [job] = enqueue(connect())
    worker, monitor, user = Worker(connect()), connect(), connect()
    held = worker.claim()
    with monitor.transaction():
        release_jobs(monitor, held.lease_id, 1)
        cancel = Blocked(user, lambda: cancel_job(user, job))
    assert cancel.answer() is CancelAnswer.CANCELLED
    assert ended(user, job) == [(1, "cancelled", 0)]


def test_a_cancel_of_a_job_that_stands_in_two_leases_marks_the_one_that_runs_it_and_holds_up_no_renewal(
    connect: Connect,
) -> None:
    """A retry runs in another lease while the one of its first execution is still held for its other jobs."""
    [job, _] = enqueue(connect(), 2)
    worker, user, monitor, blocker = Worker(connect()), connect(), connect(), connect()
    first = worker.claim(2, lease_id=HIGH)
    assert worker.settle(first.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE))
    assert worker.claim(1, lease_id=LOW).ids == [job]
    with blocker.transaction():
        blocker.execute("select from pgworker.job_leases where lease_id = %s for update", [LOW])
        cancel = Blocked(user, lambda: cancel_job(user, job))
        with impatient(monitor):
            assert sorted(renew_leases(monitor, [LOW, HIGH], 60)) == [LOW, HIGH]
    assert cancel.answer() is CancelAnswer.REQUESTED
    assert renew_leases(monitor, [LOW, HIGH], 60) == {LOW: Renewal([1], False), HIGH: Renewal([], False)}


def test_a_cancel_that_needs_two_leases_never_deadlocks_with_a_trip_that_ends_both(connect: Connect) -> None:
    """Both take them in the order of their ids, here not that of their claims."""
    ids = enqueue(connect(), 2)
    worker, user = Worker(connect()), connect()
    first = worker.claim(2, lease_id=HIGH)
    assert worker.settle(first.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE))
    retry = worker.claim(1, lease_id=LOW)
    with worker.connection.transaction():
        assert worker.settle(retry.settlement())
        cancel = Blocked(user, lambda: cancel_job(user, ids[0]))
        assert worker.settle(first.settlement(2))
    assert cancel.answer() is CancelAnswer.TOO_LATE
    assert statuses(user, ids) == ["succeeded", "succeeded"]


# -- j: a claim that waited


def test_the_time_of_a_lease_counts_from_when_its_claim_got_through_not_from_when_it_was_sent(connect: Connect) -> None:
    [job] = enqueue(connect())
    worker, admin = Worker(connect()), connect()
    with admin.transaction():
        admin.execute("lock table pgworker.job_leases in exclusive mode")
        late = Blocked(worker.connection, lambda: worker.claim(ttl=60))
        let_go = now(admin)
    held = late.answer()
    assert held.ids == [job]
    [(claimed_at, seconds)] = ask(
        admin, "select claimed_at, extract(epoch from expires_at - claimed_at)::float8 from pgworker.job_leases"
    )
    assert claimed_at > let_go
    assert 60 <= seconds < 61


# -- k: isolation


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_reclaim_leaves_alone_what_was_settled_before_it_whatever_isolation_its_connection_prefers(
    connect: Connect, level: str
) -> None:
    ids = enqueue(connect(), 2)
    worker, monitor, settler = Worker(connect()), Monitor(connect()), connect()
    monitor.connection.execute(f"set default_transaction_isolation = '{level}'".encode())
    held = worker.claim()
    worker.die()
    [lease] = monitor.reclaimable()

    def settled() -> None:
        settler.execute(
            "insert into pgworker.job_executions (job_id, lease_id, finished_at, execution, outcome, failures) "
            "values (%s, %s, now(), 1, 'succeeded', 0)",
            [ids[0], held.lease_id],
        )

    assert monitor.reclaim(lease, [Outcome.CRASHED, Outcome.CRASHED], meanwhile=settled)
    assert statuses(settler, ids) == ["succeeded", "failed"]


# -- l: a collision


def test_a_queue_row_that_collides_with_one_job_of_a_lease_keeps_none_of_the_others_from_going_back(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 3)
    worker, monitor = Worker(connect()), Monitor(connect())
    worker.claim()
    worker.die()
    monitor.connection.execute(
        "insert into pgworker.job_queue select id, run_at, 7, priority, 3, queue, task, org_id from pgworker.jobs "
        "where id = %s",
        [ids[1]],
    )
    assert len(monitor.reclaim_all()) == 1
    assert waiting(monitor.connection) == [(ids[0], 2, 0), (ids[1], 7, 3), (ids[2], 2, 0)]


def test_a_lease_whose_reclaim_is_stuck_behind_somebody_holds_up_no_other_lease(connect: Connect) -> None:
    [stuck, free] = enqueue(connect(), 2)
    worker, one, two, somebody = Worker(connect()), Monitor(connect()), Monitor(connect()), connect()
    worker.claim(1)
    worker.claim(1)
    worker.die()
    with somebody.transaction(force_rollback=True):
        somebody.execute(
            "insert into pgworker.job_queue select id, run_at, 7, priority, 3, queue, task, org_id from pgworker.jobs "
            "where id = %s",
            [stuck],
        )
        stuck_lease = next(lease for lease in one.reclaimable() if leases(somebody)[lease.lease_id] == [stuck])
        blocked = Blocked(one.connection, lambda: one.reclaim(stuck_lease))
        with impatient(two.connection):
            assert [[job.job_id for job in lease.jobs] for lease in two.reclaim_all()] == [[free]]
    assert blocked.answer()
    assert waiting(somebody) == [(stuck, 2, 0), (free, 2, 0)]


# -- m: dead letters


def bury(worker: Worker, held: Held) -> None:
    assert worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY))


def test_a_dead_letter_run_again_continues_its_execution_numbers_with_failures_from_zero(connect: Connect) -> None:
    [job] = enqueue(connect(), max_attempts=2)
    worker, admin = Worker(connect()), connect()
    assert worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.REQUEUE))
    bury(worker, worker.claim())
    assert requeue_dead_letters(admin, [job]) == [job]
    assert waiting(admin) == [(job, 3, 0)]
    bury(worker, worker.claim())
    assert ended(admin, job) == [(1, "failed", 1), (2, "failed", 2), (3, "failed", 1)]
    assert statuses(admin, [job]) == ["dead_letter"]


def test_of_two_who_requeue_or_discard_one_dead_letter_one_wins_and_the_other_is_told(connect: Connect) -> None:
    ids = enqueue(connect(), 2)
    worker, one, two = Worker(connect()), connect(), connect()
    bury(worker, worker.claim())
    with one.transaction():
        assert requeue_dead_letters(one, ids[:1]) == ids[:1]
        assert discard_dead_letters(one, ids[1:]) == ids[1:]
        late = Blocked(two, lambda: (discard_dead_letters(two, ids[:1]), requeue_dead_letters(two, ids)))
    assert late.answer() == ([], [])
    assert statuses(one, ids) == ["pending", "cancelled"]
    assert waiting(one) == [(ids[0], 2, 0)]


# -- o: partitions


def test_while_a_reader_keeps_a_partition_from_being_made_claims_go_on(connect: Connect) -> None:
    ids = enqueue(connect(), 8)
    reader, maker, worker = connect(), connect(), Worker(connect())
    make, day = "select pgworker.create_partition(%s)", date(2020, 1, 1)
    worker.connection.execute("set lock_timeout = '1s'")  # the DDL gives up after 50 ms, and only then a claim goes on
    with reader.transaction(), ThreadPoolExecutor(1) as thread:
        reader.execute("select from pgworker.jobs limit 1")
        for job in ids:
            making = thread.submit(maker.execute, make, [day])
            assert worker.claim(1).ids == [job]
            assert isinstance(making.exception(DEADLINE), psycopg.errors.LockNotAvailable)
    assert ask(maker, make, day) == [True]
    assert ask(maker, make, day) == [False]


# -- p: the monitor releases what the runner is about to start


def test_a_job_that_the_monitor_released_under_a_runner_that_had_already_started_it_is_settled_by_its_new_holder_only(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 3)
    runner, monitor, other = Worker(connect()), connect(), Worker(connect())
    held = runner.claim()
    assert release_jobs(monitor, held.lease_id, 2).lanes[0].jobs == 2
    true = other.claim(2)
    assert is_fenced(runner, held, 2, 2)
    assert other.settle(true.settlement())
    assert is_fenced(runner, held, 2, 2)
    assert leases(monitor) == {held.lease_id: ids[:1]}
    assert runner.settle(held.settlement(1, 1, ends=True))
    assert [ended(monitor, job) for job in ids] == [[(1, "succeeded", 0)]] * 3


def test_a_settlement_that_reaches_into_the_released_tail_records_its_own_part_and_is_told_how_much_is_missing(
    connect: Connect,
) -> None:
    ids = enqueue(connect(), 3)
    runner, monitor = Worker(connect()), connect()
    held = runner.claim()
    release_jobs(monitor, held.lease_id, 3)
    settlement = held.settlement()
    assert not runner.settle(settlement)
    assert find_unsettled(runner.connection.cursor(), settlement) == settlement.executions[2:]
    assert statuses(monitor, ids) == ["succeeded", "succeeded", "pending"]
    assert leases(monitor) == {}
