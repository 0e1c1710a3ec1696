"""What jobs say of how far they are: who may store it, what the next execution gets, and when it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from pgworker import App, JobNotFound, Progress
from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.open_queue import OpenQueue
from pgworker.inspection.progress import read_progress
from pgworker.lifecycle.cancel import cancel_job, cancel_jobs
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.dead_letters import discard_dead_letters, requeue_dead_letters
from pgworker.lifecycle.progress import forget_progress, prune_progress, save_progress
from pgworker.lifecycle.purge import purge_queue
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.renew import renew_leases
from pgworker.lifecycle.settle import Ended, Next, Settlement
from pgworker.model.payload import MAX_RESULT_BYTES
from pgworker.model.progress import check_progress
from pgworker.model.selection import JobFilter
from pgworker.model.state import CancelAnswer, Outcome
from tests.sql.actors import Blocked, Connect, Held, Monitor, Worker, ask, ended, enqueue, impatient, leases, settle
from tests.sql.invariants import STORED, WITNESSED, offences

AGAIN: dict[str, Any] = {"outcome": Outcome.FAILED, "then": Next.REQUEUE}
DEAD: dict[str, Any] = {"outcome": Outcome.FAILED, "then": Next.BURY}
LEFT_BEHIND = {name: query for name, query in WITNESSED.items() if name.startswith("nothing is kept")}


@pytest.fixture
def db(connect: Connect) -> Connection[Any]:
    return connect()


@pytest.fixture
def worker(connect: Connect) -> Worker:
    return Worker(connect())


@pytest.fixture
def monitor(connect: Connect) -> Monitor:
    return Monitor(connect())


@pytest.fixture
def queue(dsn: str) -> Iterator[OpenQueue]:
    opened = open_queue(dsn)
    yield opened
    opened.close()


def open_queue(dsn: str) -> OpenQueue:
    app = App(dsn)
    app.task(name="t")(lambda: None)
    return OpenQueue(dsn, Lanes.of(["default"]), app.tasks, 60)


def save(connection: Connection[Any], held: Held, fraction: float = 0.5, checkpoint: object = None) -> None:
    """Every job of a lease says so."""
    said = {place: check_progress(job, fraction, "", checkpoint) for place, job in enumerate(held.ids, start=1)}
    save_progress(connection, held.lease_id, said)


def stored(connection: Connection[Any]) -> dict[UUID, tuple[int, float]]:
    """Of each job that has said something: in which execution, and how far it was."""
    rows = ask(connection, "select job_id, execution, fraction from pgworker.job_progress")
    return {job: (execution, round(fraction, 3)) for job, execution, fraction in rows}


def checkpoints(held: Held) -> list[str | None]:
    return [row.checkpoint for row in held.rows]


# -- what is stored, and what the next execution gets


def test_the_last_thing_said_is_there_for_everybody_and_the_checkpoint_until_there_is_another(
    db: Connection[Any], worker: Worker
) -> None:
    [job] = enqueue(db)
    held = worker.claim()
    assert read_progress(db, job) is None
    save_progress(worker.connection, held.lease_id, {1: check_progress(job, 0.1, "one", {"page": 1})})
    save_progress(worker.connection, held.lease_id, {1: check_progress(job, 0.25, "two", None)})
    seen = read_progress(db, job)
    assert seen is not None
    assert seen == Progress(1, 0.25, "two", {"page": 1}, seen.updated_at)
    save_progress(worker.connection, held.lease_id, {1: check_progress(job, 0.2, "", {})})
    seen = read_progress(db, job)
    assert seen is not None
    assert (seen.fraction, seen.message, seen.checkpoint) == (0.2, "", {})


def test_of_a_job_that_is_not_there_nothing_can_be_asked(db: Connection[Any]) -> None:
    with pytest.raises(JobNotFound):
        read_progress(db, UUID(int=7))


def test_the_next_execution_gets_the_checkpoint_and_a_first_one_none(
    db: Connection[Any], worker: Worker, monitor: Monitor
) -> None:
    enqueue(db)
    first = worker.claim()
    assert checkpoints(first) == [None]
    save(worker.connection, first, checkpoint={"page": 7})
    assert worker.settle(first.settlement(**AGAIN))
    second = worker.claim()
    assert checkpoints(second) == ['{"page": 7}']
    assert not release_jobs(worker.connection, second.lease_id, 1).is_busy
    third = worker.claim()
    assert checkpoints(third) == ['{"page": 7}']
    worker.die()
    monitor.reclaim(monitor.reclaimable()[0], [Outcome.CRASHED])
    fourth = Worker(worker.connection).claim()
    assert checkpoints(fourth) == ['{"page": 7}']
    assert worker.settle(fourth.settlement(outcome=Outcome.SNOOZED, then=Next.REQUEUE))
    assert checkpoints(worker.claim()) == ['{"page": 7}']


def test_who_left_no_checkpoint_is_told_apart_from_who_said_nothing(db: Connection[Any], worker: Worker) -> None:
    [spoke, silent] = enqueue(db, 2)
    held = worker.claim()
    save_progress(worker.connection, held.lease_id, {held.ids.index(spoke) + 1: check_progress(spoke, 0.5, "", None)})
    assert worker.settle(held.settlement(**AGAIN))
    again = worker.claim()
    assert dict(zip(again.ids, checkpoints(again), strict=True)) == {spoke: "null", silent: None}


def test_a_dead_letter_keeps_it_and_so_does_its_requeue(db: Connection[Any], worker: Worker) -> None:
    [job] = enqueue(db)
    held = worker.claim()
    save(worker.connection, held, checkpoint={"page": 7})
    assert worker.settle(held.settlement(**DEAD))
    forget_progress(db, [job])
    seen = read_progress(db, job)
    assert seen is not None
    assert seen.checkpoint == {"page": 7}
    assert requeue_dead_letters(db, [job]) == [job]
    assert checkpoints(worker.claim()) == ['{"page": 7}']


LARGEST = {
    "text": {"a": "x" * (MAX_RESULT_BYTES - 8)},
    "numbers": {"a": [1] * (MAX_RESULT_BYTES // 2 - 4)},
    "fractions": {"a": [0.1] * (MAX_RESULT_BYTES // 4 - 4)},
    "small numbers": {"a": [5e-324] * (MAX_RESULT_BYTES // 7 - 4)},
    "large numbers": {"a": [2**1023] * (MAX_RESULT_BYTES // 310 - 4)},
    "empty lists": {"a": [[]] * (MAX_RESULT_BYTES // 3 - 4)},
    "keys": {str(number): None for number in range(4800)},
    "levels": {"a": json.loads("[" * 60 + "]" * 60)},
}


@pytest.mark.parametrize("kind", LARGEST)
def test_whatever_passes_the_check_of_a_handler_is_stored_and_comes_back(
    kind: str, db: Connection[Any], worker: Worker
) -> None:
    [job] = enqueue(db)
    held = worker.claim()
    said = check_progress(job, 5e-324, "x" * 999 + "\0", LARGEST[kind])
    save_progress(worker.connection, held.lease_id, {1: said})
    seen = read_progress(db, job)
    assert seen is not None
    assert seen.checkpoint == LARGEST[kind]


# -- the fence


def test_what_is_not_held_any_more_may_say_nothing(db: Connection[Any], worker: Worker, monitor: Monitor) -> None:
    settled, released = enqueue(db, 2)
    held = worker.claim()
    assert worker.settle(held.settlement(1, 1, **DEAD))
    assert not release_jobs(worker.connection, held.lease_id, 2).is_busy
    save(worker.connection, held)
    save_progress(worker.connection, held.lease_id, {3: check_progress(settled, 0.5, "", None)})
    assert stored(db) == {}
    lost = worker.claim()
    assert lost.ids == [released]
    worker.die()
    assert len(monitor.reclaim_all()) == 2
    save(worker.connection, lost)
    assert stored(db) == {}


def test_an_execution_never_writes_over_a_later_one(db: Connection[Any], worker: Worker) -> None:
    """As it would if a backend that was given up for dead came back with a statement whose look is old."""
    [job] = enqueue(db)
    held = worker.claim()
    save(worker.connection, held, 0.9)
    db.execute("update pgworker.job_progress set execution = 2")
    save(worker.connection, held, 0.1)
    assert stored(db) == {job: (2, 0.9)}


def test_while_something_is_being_stored_the_lease_is_renewed_and_settled_but_not_taken(
    db: Connection[Any], worker: Worker, monitor: Monitor, connect: Connect
) -> None:
    enqueue(db, 2)
    held = worker.claim()
    other = connect()
    with worker.connection.transaction():
        save(worker.connection, held)
        with impatient(other):
            assert renew_leases(other, [held.lease_id], 60)
            assert settle(other.cursor(), held.settlement(1, 1))
        Worker(db, worker.worker_id).die()
        [lease] = monitor.reclaimable()
        assert monitor.reclaim(lease) is None
    assert monitor.reclaim(lease) is not None
    assert list(stored(db)) == [held.ids[1]]


def test_a_reclaim_that_is_under_way_is_waited_for_and_then_nothing_is_stored(
    db: Connection[Any], worker: Worker, monitor: Monitor
) -> None:
    enqueue(db)
    held = worker.claim()
    Worker(db, worker.worker_id).die()
    blocked: list[Blocked[None]] = []

    def save_meanwhile() -> None:
        blocked.append(Blocked(worker.connection, lambda: save(worker.connection, held)))

    assert monitor.reclaim(monitor.reclaimable()[0], meanwhile=save_meanwhile) is not None
    blocked[0].answer()
    assert stored(db) == {}


def test_a_trip_locks_its_leases_in_their_order_whatever_it_has_to_tell_of_them(
    db: Connection[Any], queue: OpenQueue, connect: Connect
) -> None:
    """As a cancel of a job in two leases does: the two can't deadlock."""
    enqueue(db, 2)
    low, high = sorted((queue.claim(1)[0] for _ in range(2)), key=lambda job: job.lease.lease_id)
    queue.progress(high, check_progress(high.row.job_id, 0.5, "", None))
    queue.succeed(low)
    holder, other = connect(), connect()
    lock = "select from pgworker.job_leases where lease_id = %s for update"
    with holder.transaction():
        holder.execute(lock, [low.lease.lease_id])
        assert queue._connection is not None
        trip = Blocked(queue._connection, lambda: queue.claim(0))
        with impatient(other):
            other.execute(lock, [high.lease.lease_id])
    assert trip.answer() == []
    assert list(stored(db)) == [high.row.job_id]


# -- when it goes


def left_by(db: Connection[Any], worker: Worker, jobs: int = 1, **how: Any) -> list[UUID]:
    """Jobs that have left a checkpoint, and ended so."""
    enqueue(db, jobs)
    held = worker.claim()
    save(worker.connection, held, checkpoint={"page": 7})
    assert worker.settle(held.settlement(**how))
    return held.ids


def cancel_by_id(db: Connection[Any], job: UUID) -> None:
    assert cancel_job(db, job) is CancelAnswer.CANCELLED


def cancel_by_filter(db: Connection[Any], job: UUID) -> None:
    assert cancel_jobs(db, JobFilter(task="t")).cancelled == 1


def purge(db: Connection[Any], job: UUID) -> None:
    assert purge_queue(db, "default") == 1


def cancel_and_release(db: Connection[Any], job: UUID) -> None:
    held = Worker(db).claim()
    assert cancel_job(db, job) is CancelAnswer.REQUESTED
    release_jobs(db, held.lease_id, 1)


def cancel_and_reclaim(db: Connection[Any], job: UUID) -> None:
    worker = Worker(db)
    worker.claim()
    assert cancel_job(db, job) is CancelAnswer.REQUESTED
    worker.die()
    Monitor(db).reclaim_all()


@pytest.mark.parametrize("end", [cancel_by_id, cancel_by_filter, purge, cancel_and_release, cancel_and_reclaim])
def test_it_goes_with_a_job_that_is_cancelled(
    db: Connection[Any], worker: Worker, end: Callable[[Connection[Any], UUID], None]
) -> None:
    [job] = left_by(db, worker, **AGAIN)
    [bystander] = enqueue(db, queue="else")
    save(db, Worker(db).claim(queues=["else"]))
    assert stored(db).keys() == {job, bystander}
    end(db, job)
    assert stored(db).keys() == {bystander}
    assert read_progress(db, job) is None
    assert offences(db, STORED) == {}


def test_it_goes_with_a_dead_letter_that_is_discarded(db: Connection[Any], worker: Worker) -> None:
    one, two = left_by(db, worker, 2, **DEAD)
    assert discard_dead_letters(db, [one]) == [one]
    assert stored(db).keys() == {two}


def test_what_a_job_said_that_its_worker_could_not_forget_goes_with_the_lease(
    db: Connection[Any], worker: Worker, monitor: Monitor, connect: Connect
) -> None:
    """It succeeded in its own transaction, and the worker died before it heard of that."""
    done, runs = enqueue(db, 2)
    held = worker.claim()
    save(worker.connection, held)
    assert settle(connect().cursor(), held.settlement(1, 1, ends=False))
    assert read_progress(db, done) is None
    worker.die()
    monitor.reclaim_all()
    assert stored(db).keys() == {runs}


def test_who_has_lost_his_lease_makes_nobody_forget_anything(
    db: Connection[Any], worker: Worker, monitor: Monitor, connect: Connect
) -> None:
    enqueue(db)
    lost = worker.claim()
    worker.die()
    monitor.reclaim(monitor.reclaimable()[0], [Outcome.CRASHED])
    new = Worker(connect())
    held = new.claim()
    save(new.connection, held)
    assert not worker.settle(lost.settlement())
    forget_progress(worker.connection, lost.ids)
    assert stored(db).keys() == set(held.ids)


def test_prune_takes_what_is_a_day_old_of_jobs_that_are_nowhere(db: Connection[Any], worker: Worker) -> None:
    [waits] = left_by(db, worker, outcome=Outcome.FAILED, then=Next.REQUEUE, delay=3600)
    [dead] = left_by(db, worker, **DEAD)
    [runs] = enqueue(db)
    save(worker.connection, worker.claim())
    old, new = UUID(int=1), UUID(int=2)
    db.execute("insert into pgworker.job_progress select unnest(%s), 1, 0, '', null, now()", [[old, new]])
    db.execute("update pgworker.job_progress set updated_at = now() - interval '25 h' where job_id <> %s", [new])
    prune_progress(db)
    assert stored(db).keys() == {waits, dead, runs, new}


# -- as a worker does it


def tell(queue: OpenQueue, job: ClaimedJob, fraction: float, checkpoint: object = None) -> None:
    queue.progress(job, check_progress(job.row.job_id, fraction, "", checkpoint))


def again(job: ClaimedJob, **how: Any) -> Ended:
    now = time.monotonic_ns()
    return Ended(job.row.job_id, job.row.execution, now, now, Outcome.FAILED, Next.REQUEUE, **how)


def test_a_trip_stores_what_was_said_last_and_its_checkpoint(db: Connection[Any], queue: OpenQueue) -> None:
    enqueue(db, 2)
    one, two = queue.claim(2)
    tell(queue, one, 0.1, {"page": 1})
    tell(queue, one, 0.2)
    had_progress = queue.has_progress
    assert stored(db) == {}
    queue.claim(0)
    assert (had_progress, queue.has_progress) == (True, False)
    tell(queue, two, 0.5)
    tell(queue, one, 0.3)
    queue.claim(0)
    assert stored(db) == {one.row.job_id: (1, 0.3), two.row.job_id: (1, 0.5)}
    assert ask(db, "select checkpoint from pgworker.job_progress order by fraction") == [{"page": 1}, None]


def test_what_is_said_at_the_very_end_is_there_for_the_next_execution(db: Connection[Any], queue: OpenQueue) -> None:
    enqueue(db)
    [job] = queue.claim(1)
    queue.fail(job, again(job))
    tell(queue, job, 1.0, {"page": 9})
    [job] = queue.claim(1)
    assert job.row.checkpoint == '{"page": 9}'


@pytest.mark.parametrize("by", ["the worker", "its own transaction"])
def test_it_goes_with_the_success_of_a_job_whether_it_was_said_in_this_execution_or_before(
    by: str, db: Connection[Any], queue: OpenQueue
) -> None:
    enqueue(db, 2)
    before, now = queue.claim(2)
    tell(queue, before, 0.5)
    queue.fail(before, again(before))
    [before] = queue.claim(1)
    tell(queue, now, 0.5)
    queue.claim(0)
    assert stored(db).keys() == {before.row.job_id, now.row.job_id}
    for job in (before, now):
        if by == "the worker":
            queue.succeed(job)
        else:
            done = Ended(job.row.job_id, job.row.execution, 0, time.monotonic_ns())
            assert settle(db.cursor(), Settlement(job.lease.lease_id, job.position, [done], ends_lease=False))
            queue.succeeded_itself(job)
        tell(queue, job, 1.0)
    queue.claim(0)
    assert stored(db) == {}
    assert leases(db) == {}


def test_of_a_job_that_succeeds_before_the_next_trip_nothing_is_ever_stored(
    db: Connection[Any], queue: OpenQueue
) -> None:
    enqueue(db)
    [job] = queue.claim(1)
    tell(queue, job, 0.5)
    queue.succeed(job)
    with impatient(db), db.transaction():
        db.execute("lock table pgworker.job_progress in access exclusive mode")
        assert queue.claim(0) == []
    assert ended(db, job.row.job_id) == [(1, "succeeded", 0)]


def test_a_job_cancelled_when_it_fails_leaves_nothing(db: Connection[Any], queue: OpenQueue) -> None:
    enqueue(db)
    [job] = queue.claim(1)
    tell(queue, job, 0.5)
    queue.claim(0)
    assert cancel_job(db, job.row.job_id) is CancelAnswer.REQUESTED
    queue.fail(job, again(job))
    assert queue.claim(1) == []
    assert ended(db, job.row.job_id) == [(1, "cancelled", 1)]
    assert stored(db) == {}


def test_a_trip_whose_reply_was_lost_is_repeated_and_leaves_the_next_execution_alone(
    db: Connection[Any], dsn: str, queue: OpenQueue
) -> None:
    enqueue(db, 2)
    failed, running = queue.claim(2)
    tell(queue, failed, 0.9, {"page": 1})
    queue.fail(failed, again(failed))
    [update] = [lease.update() for lease in queue.leases]
    assert update is not None
    save_progress(db, update.lease.lease_id, update.progress)
    assert update.settlement is not None
    assert settle(db.cursor(), update.settlement)
    other = open_queue(dsn)
    [job] = other.claim(1)
    assert job.row.checkpoint == '{"page": 1}'
    tell(other, job, 0.2, {"page": 2})
    other.claim(0)
    queue.claim(0)
    assert stored(db) == {job.row.job_id: (2, 0.2)}
    other.succeed(job)
    other.close()
    queue.succeed(running)
    queue.claim(0)
    assert stored(db) == {}


def test_beside_a_result_that_can_not_be_stored_progress_is(db: Connection[Any], queue: OpenQueue) -> None:
    enqueue(db, 3)
    bad, good, running = queue.claim(3)
    tell(queue, good, 0.5)
    tell(queue, running, 0.5, {"page": 1})
    queue.claim(0)
    queue.fail(bad, again(bad, error="no JSON"))
    tell(queue, bad, 0.7)
    queue.succeed(good)
    tell(queue, running, 0.6)
    assert queue.claim(0) == []
    assert stored(db) == {bad.row.job_id: (1, 0.7), running.row.job_id: (1, 0.6)}


def test_what_postgresql_will_not_store_is_dropped_and_said_once(
    db: Connection[Any], queue: OpenQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """It can't come from a handler; if it could, a worker would try it for ever."""
    enqueue(db, 2)
    one, two = queue.claim(2)
    queue.progress(one, replace(check_progress(one.row.job_id, 0.5, "", None), fraction=2.0))
    tell(queue, two, 0.5)
    queue.claim(0)
    assert stored(db).keys() == {two.row.job_id}
    assert [record.message for record in caplog.records if record.name == "pgworker.queue"] == [
        "the server would not store progress"
    ]
    queue.claim(0)
    assert not queue.has_progress


def test_nothing_is_left_of_jobs_that_have_ended(db: Connection[Any], worker: Worker) -> None:
    for how in (AGAIN, DEAD, {}):
        left_by(db, worker, **how)
    assert offences(db, LEFT_BEHIND).keys() == LEFT_BEHIND.keys(), "nobody has asked to forget yet"
    forget_progress(db, list(stored(db)))
    assert offences(db, LEFT_BEHIND) == {}
    assert len(stored(db)) == 2
