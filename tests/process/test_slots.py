"""A pool whose workers run several jobs at a time, in threads and on an event loop, against real faults."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from pgworker.app.task import Enqueuer
from pgworker.inspection.explain import explain
from pgworker.inspection.facts import read_facts
from pgworker.lifecycle.cancel import cancel_job
from pgworker.model.job import JobRequest
from pgworker.model.state import CancelAnswer
from tests.process import jobs, test_pool
from tests.process.pool import eventually
from tests.process.test_pool import TTL, Noted, Outage, Scene, StartPool, enqueuers_tell, kill
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

Connect = Callable[[], Connection[Any]]

scene = test_pool.scene
start_pool = test_pool.start_pool
outage = test_pool.outage

NEVER = 600.0
"""Seconds of a poll interval that no test waits for: who works is woken."""

TASKS: dict[str, Enqueuer[[str, str], Any]] = {"sync": jobs.hold, "async": jobs.hold_async}


def names(count: int, prefix: str = "job") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def holds(scene: Scene, *named: str) -> list[JobRequest]:
    return [jobs.hold.job(str(scene.directory), name) for name in named]


def async_holds(scene: Scene, *named: str) -> list[JobRequest]:
    return [jobs.hold_async.job(str(scene.directory), name) for name in named]


def wait_for_starts(scene: Scene, *named: str, execution: int = 1) -> list[Noted]:
    return [scene.wait_for("start", name, execution) for name in named]


def open_gates(scene: Scene, *named: str) -> None:
    for name in named:
        scene.open_gate(name)


def ran(scene: Scene, *job_ids: UUID) -> list[list[tuple[int, str, int]]]:
    return [scene.outcomes(job) for job in job_ids]


def most_at_once(lines: Iterable[Noted]) -> int:
    """How many ran at the same time, at most, by what they said at their start and at their end."""
    running = most = 0
    for line in lines:
        running += {"start": 1, "end": -1}.get(line.event, 0)
        most = max(most, running)
    return most


def count(scene: Scene, table: str) -> int:
    return int(scene.scalar(f"select count(*) from pgworker.{table}"))


# -- how many at once


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_worker_runs_as_many_jobs_at_once_as_it_has_slots_and_no_more(
    kind: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=4)
    running = names(4)
    held = scene.enqueue_together(*(TASKS[kind].job(str(scene.directory), name) for name in running))
    assert len({line.pid for line in wait_for_starts(scene, *running)}) == 1
    fifth = scene.enqueue(TASKS[kind], "fifth")
    assert scene.status(fifth) == "pending"
    scene.open_gate("job2")
    scene.wait_for("start", "fifth")
    assert scene.outcomes(held[2]) or scene.noted("end", "job2")
    open_gates(scene, *running, "fifth")
    scene.wait_for_status("succeeded", *held, fifth)
    assert most_at_once(scene.ledger()) == 4
    assert ran(scene, *held, fifth) == [[(1, "succeeded", 0)]] * 5
    assert not scene.leases()


def test_a_hundred_async_jobs_run_at_once_on_one_loop(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, slots=100)
    named = names(150)
    all_of_them = scene.enqueue_together(*async_holds(scene, *named))
    eventually(lambda: most_at_once(scene.ledger()) == 100, lambda: f"100, not {most_at_once(scene.ledger())}")
    open_gates(scene, *named)
    scene.wait_for_status("succeeded", *all_of_them)
    assert most_at_once(scene.ledger()) == 100
    assert len({line.pid for line in scene.ledger()}) == 1
    assert not scene.leases()


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_sync_and_async_jobs_of_a_worker_share_its_slots(slots: int, scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, slots=slots)
    dice = random.Random(slots)
    mixed = [
        dice.choice([jobs.nap, jobs.nap_async]).job(str(scene.directory), name, dice.choice([0, 0.001, 0.01]))
        for name in names(300)
    ]
    all_of_them = scene.enqueue_together(*mixed)
    eventually(lambda: count(scene, "job_executions") == 300, lambda: f"300, not {count(scene, 'job_executions')}")
    assert most_at_once(scene.ledger()) <= slots
    assert {tuple(scene.outcomes(job)) for job in all_of_them} == {((1, "succeeded", 0),)}
    eventually(lambda: not scene.leases(), "no lease")


@pytest.mark.parametrize("first", ["nothing", "a blocked loop"])
def test_whoever_comes_first_in_a_claim_every_slot_that_is_free_gets_a_job(
    first: str, scene: Scene, start_pool: StartPool
) -> None:
    """No word is lost between the threads and the loop, however late the loop hears of its job.

    The monitor is stopped: after a second it would take back what was not started.
    """
    pool = start_pool(workers=1, slots=5, poll_interval=0.02)
    os.kill(pool.monitor, signal.SIGSTOP)
    orders = ["asss", "saas", "aass", "ssaa", "sasa", "asas", "sass", "assa"]
    for number in range(16):
        blocker = f"blocker{number}"
        blocking = [] if first == "nothing" else [scene.enqueue(jobs.block_the_loop, blocker)]
        if blocking:
            scene.wait_for("start", blocker)
        named = [f"{letter}{place}of{number}" for place, letter in enumerate(orders[number % len(orders)])]
        requests = [TASKS["async" if name[0] == "a" else "sync"].job(str(scene.directory), name) for name in named]
        held = scene.enqueue_together(*requests)
        scene.wait_for_status("running", *held)
        scene.open_gate(blocker)
        for name in named:
            scene.wait_for("start", name, within=10)  # the master would replace the monitor
        open_gates(scene, *named)
        scene.wait_for_status("succeeded", *held, *blocking)


def test_a_worker_of_one_slot_runs_async_jobs_too(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1)
    held, waiting = scene.enqueue(jobs.hold_async, "held"), scene.enqueue(jobs.effect_async, "waiting")
    scene.wait_for("start", "held")
    scene.open_gate("held")
    scene.wait_for_status("succeeded", held, waiting)
    assert scene.effects() == [(waiting, 1)]


def test_threads_that_have_nothing_to_do_take_what_is_enqueued_one_by_one(scene: Scene, start_pool: StartPool) -> None:
    """A worker with a free slot is told of every new job, whatever it was doing when that was enqueued."""
    start_pool(workers=1, slots=4, poll_interval=NEVER)
    dice = random.Random(7)
    long = scene.enqueue(jobs.hold, "long")
    scene.wait_for("start", "long")
    for name in names(60):
        job = scene.enqueue(dice.choice([jobs.nap, jobs.nap_async]), name)
        if dice.random() < 0.7:
            scene.wait_for_status("succeeded", job)
    eventually(lambda: count(scene, "job_executions") == 60, lambda: f"60, not {count(scene, 'job_executions')}")
    scene.open_gate("long")
    scene.wait_for_status("succeeded", long)


# -- a long job among short ones


@pytest.mark.parametrize(("workers", "slots"), [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_long_job_delays_none_of_a_thousand_short_ones(
    kind: str, workers: int, slots: int, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=workers, slots=slots, poll_interval=NEVER)
    scene.warm_up()
    long = TASKS[kind].job(str(scene.directory), "long")
    job, *short = scene.enqueue_together(long, *scene.quick(*names(1000)))
    ended = "select count(*) from pgworker.job_executions where job_id = any (%s) and outcome = 'succeeded'"
    eventually(lambda: scene.scalar(ended, short) == 1000, lambda: f"1000, not {scene.scalar(ended, short)}")
    assert scene.status(job) == "running"
    scene.open_gate("long")
    scene.wait_for_status("succeeded", job)
    assert set(Counter(line.name for line in scene.noted("start", *names(1000))).values()) == {1}
    assert scene.outcomes(job) == [(1, "succeeded", 0)]


@pytest.mark.parametrize(("workers", "slots"), [(2, 1), (2, 2)])
def test_what_waits_behind_long_jobs_goes_back_and_wakes_another_worker(
    workers: int, slots: int, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=workers, slots=slots, poll_interval=NEVER)
    scene.warm_up(200)
    for number in range(6):
        eventually(lambda: enqueuers_tell(scene), "an idle pool")
        long = names(workers * slots - 1, f"long{number}of")
        short = names(10, f"short{number}of")
        first = scene.enqueue_together(*holds(scene, *long), *scene.quick(*short))
        scene.wait_for_status("succeeded", *first[len(long) :])
        assert not scene.noted("end", *long)
        open_gates(scene, *long)
        scene.wait_for_status("succeeded", *first)
        assert {job: failures for job in first for _, _, failures in scene.outcomes(job)} == dict.fromkeys(first, 0)


def test_sync_jobs_behind_an_event_loop_that_is_blocked_are_run_elsewhere(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=2, slots=3, poll_interval=NEVER)
    scene.warm_up(200)
    eventually(lambda: enqueuers_tell(scene), "an idle pool")
    blocker = jobs.block_the_loop.job(str(scene.directory), "blocker")
    naps = [jobs.nap_async.job(str(scene.directory), name) for name in names(5, "nap")]
    everything = scene.enqueue_together(blocker, *naps, *scene.quick(*names(10)))
    scene.wait_for_status("succeeded", *everything[6:])
    assert not scene.noted("end", "blocker")
    scene.open_gate("blocker")
    scene.wait_for_status("succeeded", *everything)
    assert set(Counter(line.name for line in scene.noted("start", *names(5, "nap"), *names(10))).values()) == {1}


# -- jobs that are cancelled, and those whose time is up


def test_an_async_job_sees_its_flag(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, slots=4)
    job, neighbour = scene.enqueue(jobs.cooperate_async, "job"), scene.enqueue(jobs.hold_async, "neighbour")
    worker = wait_for_starts(scene, "job", "neighbour")[0].pid
    assert cancel_job(scene.connection, job) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", job)
    scene.open_gate("neighbour")
    scene.wait_for_status("succeeded", neighbour)
    assert ran(scene, job, neighbour) == [[(1, "cancelled", 0)], [(1, "succeeded", 0)]]
    assert pool.workers == [worker]


@pytest.mark.parametrize("grace", [0, 0.5])
def test_an_async_job_that_never_looks_is_cancelled_at_the_grace_and_alone(
    grace: float, scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=4, cancel_grace=grace, term_grace=20)
    deaf, neighbour = scene.enqueue(jobs.hold_async, "deaf"), scene.enqueue(jobs.hold, "neighbour")
    worker = wait_for_starts(scene, "deaf", "neighbour")[0].pid
    assert cancel_job(scene.connection, deaf) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", deaf)
    assert [line.event for line in scene.ledger() if line.name == "deaf"] == ["start", "stop"]
    again = scene.enqueue(jobs.nap_async, "again")
    scene.wait_for_status("succeeded", again)
    scene.open_gate("neighbour")
    scene.wait_for_status("succeeded", neighbour)
    assert ran(scene, deaf, neighbour) == [[(1, "cancelled", 0)], [(1, "succeeded", 0)]]
    assert pool.workers == [worker]


def test_an_async_job_whose_time_is_up_is_cancelled_and_charged_alone(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, slots=4, cancel_grace=0.5, term_grace=20)
    late, neighbour = scene.enqueue(jobs.hold_async.options(timeout=0.5), "late"), scene.enqueue(jobs.hold, "neighbour")
    worker = wait_for_starts(scene, "late", "neighbour")[0].pid
    scene.wait_for("stop", "late")
    open_gates(scene, "late", "neighbour")
    scene.wait_for_status("succeeded", late, neighbour)
    assert ran(scene, late, neighbour) == [[(1, "timed_out", 1), (2, "succeeded", 1)], [(1, "succeeded", 0)]]
    assert pool.workers == [worker]


def test_an_async_job_whose_time_is_up_is_explained_by_that_and_by_the_place_where_it_was(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, cancel_grace=0.1, term_grace=20)
    late = scene.enqueue(jobs.hold_async.options(timeout=0.1, max_attempts=1), "late")
    scene.wait_for_status("dead_letter", late)
    [execution] = scene.executions(late)
    assert "after 1 failure: the job's time is up." in explain(read_facts(scene.connection, late)).sentence
    assert (execution.outcome, execution.message) == ("timed_out", "the job's time is up")
    assert "in wait_for_gate_async" in execution.stack


@pytest.mark.parametrize("why", ["cancelled", "timed_out"])
def test_an_async_job_that_resists_is_killed_and_its_neighbours_run_again_uncharged(
    why: str, scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=4, cancel_grace=0.5, term_grace=1.5)
    culprit = scene.enqueue(jobs.resist.options(timeout=None if why == "cancelled" else 1), "culprit")
    neighbours = scene.enqueue_together(*holds(scene, "thread"), *async_holds(scene, "loop1", "loop2"))
    worker = wait_for_starts(scene, "culprit", "thread", "loop1", "loop2")[0].pid
    if why == "cancelled":
        assert cancel_job(scene.connection, culprit) is CancelAnswer.REQUESTED
    scene.wait_for("stop", "culprit")
    wait_for_starts(scene, "thread", "loop1", "loop2", execution=2)
    open_gates(scene, "culprit", "thread", "loop1", "loop2")
    scene.wait_for_status("succeeded", *neighbours)
    assert ran(scene, *neighbours) == [[(1, "lost", 0), (2, "succeeded", 0)]] * 3
    if why == "cancelled":
        scene.wait_for_status("cancelled", culprit)
        assert scene.outcomes(culprit) == [(1, "cancelled", 0)]
    else:
        scene.wait_for_status("succeeded", culprit)
        assert scene.outcomes(culprit) == [(1, "timed_out", 1), (2, "succeeded", 1)]
        assert "in resist" in scene.executions(culprit)[0].stack
    assert worker not in pool.workers
    assert offences(scene.connection, STORED) == {}


def test_a_thread_that_is_deaf_is_killed_and_its_neighbours_run_again_uncharged(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=4, cancel_grace=0.5, term_grace=0.5)
    late = scene.enqueue(jobs.hold.options(timeout=1, max_attempts=1), "late")
    neighbours = scene.enqueue_together(*holds(scene, "thread"), *async_holds(scene, "loop"))
    wait_for_starts(scene, "late", "thread", "loop")
    scene.wait_for_status("dead_letter", late)
    wait_for_starts(scene, "thread", "loop", execution=2)
    open_gates(scene, "thread", "loop")
    scene.wait_for_status("succeeded", *neighbours)
    assert scene.outcomes(late) == [(1, "timed_out", 1)]
    assert "in wait_for_gate" in scene.executions(late)[0].stack
    assert ran(scene, *neighbours) == [[(1, "lost", 0), (2, "succeeded", 0)]] * 2


def test_a_worker_that_finds_its_lease_gone_stops_what_else_runs_of_it(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, slots=2, lease_ttl=600)
    directory = str(scene.directory)
    scene.enqueue_together(jobs.cooperate.job(directory, "beside"), jobs.hold.job(directory, "first"))
    wait_for_starts(scene, "beside", "first")
    scene.connection.execute("delete from pgworker.job_leases")  # as another pool does that takes it
    scene.open_gate("first")
    scene.wait_for("stop", "beside")


def test_a_job_that_kills_its_worker_right_behind_one_that_was_cancelled_is_not_taken_for_it(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, cancel_grace=0.5, term_grace=20)
    first, second = scene.enqueue_together(
        jobs.end_once_dumped.job(str(scene.directory), "first"), jobs.die.job(str(scene.directory), "second", "kill")
    )
    wait_for_starts(scene, "first")
    assert cancel_job(scene.connection, first) is CancelAnswer.REQUESTED
    scene.wait_for_status("succeeded", second)
    assert "cancelled" not in [outcome for _, outcome, _ in scene.outcomes(second)]


def test_a_job_that_stops_in_time_leaves_no_blame_on_the_one_in_its_slot_after_it(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=2, cancel_grace=0.5, term_grace=20)
    first, neighbour = scene.enqueue(jobs.hold_async, "first"), scene.enqueue(jobs.hold, "neighbour")
    worker = wait_for_starts(scene, "first", "neighbour")[0].pid
    assert cancel_job(scene.connection, first) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", first)
    second = scene.enqueue(jobs.hold_async, "second")
    scene.wait_for("start", "second")
    kill(worker)
    wait_for_starts(scene, "neighbour", "second", execution=2)
    open_gates(scene, "neighbour", "second")
    scene.wait_for_status("succeeded", neighbour, second)
    assert ran(scene, neighbour, second) == [[(1, "lost", 0), (2, "succeeded", 0)]] * 2


# -- workers that die


def test_when_a_worker_is_killed_all_that_it_ran_are_suspects_and_run_again_uncharged(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=4)
    scene.warm_up()
    named = ["thread1", "thread2", "loop1", "loop2"]
    four = scene.enqueue_together(*holds(scene, *named[:2]), *async_holds(scene, *named[2:]))
    kill(wait_for_starts(scene, *named)[0].pid)
    wait_for_starts(scene, *named, execution=2)
    open_gates(scene, *named)
    scene.wait_for_status("succeeded", *four)
    assert ran(scene, *four) == [[(1, "lost", 0), (2, "succeeded", 0)]] * 4
    for job in four:
        cause = scene.executions(job)[0].cause
        assert cause.startswith("one of 4 jobs that ran in a worker which died")
        assert "killed by SIGKILL" in cause


def test_a_job_that_ends_its_worker_late_is_charged_once_its_trial_lasts_as_long(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=4)
    [beside] = scene.enqueue_together(*holds(scene, "thread"))
    wait_for_starts(scene, "thread")
    poison = scene.enqueue(jobs.die_late, "poison")
    wait_for_starts(scene, "thread", "poison", execution=2)
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "beside"))  # which starts when nobody is on trial
    scene.open_gate("poison")
    scene.wait_for_status("dead_letter", poison)
    scene.open_gate("thread")
    scene.wait_for_status("succeeded", beside)
    assert [(outcome, failures) for _, outcome, failures in scene.outcomes(poison)] == [
        *[("lost", 0)] * 3, ("crashed", 1)
    ]  # fmt: skip
    assert {failures for _, _, failures in scene.outcomes(beside)} == {0}
    assert offences(scene.connection, STORED) == {}


def test_who_is_on_trial_is_not_charged_while_one_beside_it_is_as_much_in_doubt(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=2)
    poison, beside = scene.enqueue_together(
        jobs.die_beside.job(str(scene.directory), "poison", "beside"), *holds(scene, "beside")
    )
    scene.wait_for_status("dead_letter", poison)
    scene.open_gate("beside")
    scene.wait_for_status("succeeded", beside)
    assert scene.outcomes(poison) == [(1, "lost", 0), (2, "lost", 0), (3, "crashed", 1)]
    assert ran(scene, beside)[0][:2] == [(1, "lost", 0), (2, "lost", 0)]
    assert {failures for _, _, failures in scene.outcomes(beside)} == {0}


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_poison_job_costs_one_crash_more_and_nobody_beside_it_is_charged(
    how: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=4)
    threads = holds(scene, "thread1", "thread2")
    beside = scene.enqueue_together(*threads, *async_holds(scene, "loop"))
    wait_for_starts(scene, "thread1", "thread2", "loop")
    poison = scene.enqueue(jobs.die.options(max_attempts=1), "poison", how, 99)
    scene.wait_for_status("dead_letter", poison)
    open_gates(scene, "thread1", "thread2", "loop")
    scene.wait_for_status("succeeded", *beside)
    assert scene.outcomes(poison) == [(1, "lost", 0), (2, "crashed", 1)]
    assert {failures for job in beside for _, _, failures in scene.outcomes(job)} == {0}
    assert offences(scene.connection, STORED) == {}


def test_innocents_that_run_long_are_charged_for_none_of_the_poison_jobs_that_come_beside_them(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=4)
    named = ["thread1", "thread2", "loop"]
    innocents = scene.enqueue_together(*holds(scene, *named[:2]), *async_holds(scene, *named[2:]))

    def all_run() -> bool:
        started = [max((line.execution for line in scene.noted("start", name)), default=0) for name in named]
        ended = [max((run.execution for run in scene.executions(job)), default=0) for job in innocents]
        return all(start > end for start, end in zip(started, ended, strict=True))

    for number in range(2):
        eventually(all_run, lambda: f"all run, not {ran(scene, *innocents)}")
        poison = scene.enqueue(jobs.die.options(max_attempts=1), f"poison{number}", "exit", 99)
        scene.wait_for_status("dead_letter", poison)
        assert scene.outcomes(poison) == [(1, "lost", 0), (2, "crashed", 1)]
    eventually(all_run, lambda: f"all run, not {ran(scene, *innocents)}")
    open_gates(scene, *named)
    scene.wait_for_status("succeeded", *innocents)
    assert {failures for job in innocents for _, _, failures in scene.outcomes(job)} == {0}
    assert offences(scene.connection, STORED) == {}


def make_suspect(scene: Scene, job: UUID, suspicions: int) -> None:
    """As if its worker had died in so many executions in a row, and nobody could tell of which of its jobs."""
    scene.connection.execute(
        """insert into pgworker.job_executions (job_id, worker_id, finished_at, execution, outcome, failures, error)
           select %s, gen_random_uuid(), now(), number, 'lost', 0, '{"type": "pgworker.suspect"}'
           from generate_series(1, %s) as number""",
        [job, suspicions],
    )
    scene.connection.execute("update pgworker.job_queue set execution = %s where job_id = %s", [suspicions + 1, job])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_nothing_starts_beside_a_job_on_trial_and_what_was_claimed_with_it_runs_elsewhere(
    kind: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=2, slots=4)
    scene.warm_up(100)
    naps = [jobs.nap_async.job(str(scene.directory), name) for name in names(10, "nap")]
    with scene.connection.transaction():
        on_trial = TASKS[kind].job(str(scene.directory), "suspect")
        suspect, *others = scene.enqueue_together(on_trial, *scene.quick(*names(10)), *naps)
        make_suspect(scene, suspect, 10)
    worker = scene.wait_for("start", "suspect", 11).pid
    more = scene.enqueue_together(*scene.quick(*names(10, "more")))
    scene.wait_for_status("succeeded", *others, *more)
    assert scene.status(suspect) == "running"
    since = scene.ledger()[scene.ledger().index(Noted("start", "suspect", 11, worker)) + 1 :]
    assert worker not in {line.pid for line in since if line.event == "start"}
    scene.open_gate("suspect")
    scene.wait_for_status("succeeded", suspect)
    assert scene.outcomes(suspect)[-1] == (11, "succeeded", 0)


def test_a_worker_alone_goes_on_after_a_trial_with_what_it_gave_back(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, slots=4, poll_interval=NEVER)
    scene.warm_up(100)
    with scene.connection.transaction():
        suspect, *others = scene.enqueue_together(*holds(scene, "suspect"), *scene.quick(*names(10)))
        make_suspect(scene, suspect, 1)
    scene.wait_for_status("succeeded", *others)
    assert scene.status(suspect) == "running", "its trial is over, and not itself"
    with scene.connection.transaction():
        longer, *behind = scene.enqueue_together(*holds(scene, "longer"), *scene.quick(*names(10, "behind")))
        make_suspect(scene, longer, 10)
    scene.wait_for("start", "longer", 11)
    open_gates(scene, "suspect", "longer")
    scene.wait_for_status("succeeded", suspect, longer, *behind)


def test_what_has_not_begun_on_the_event_loop_is_no_suspect(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, slots=4)
    scene.warm_up()
    die = jobs.die_async.job(str(scene.directory), "poison", "exit")
    poison, *others = scene.enqueue_together(die, *async_holds(scene, "loop1", "loop2", "loop3"))
    wait_for_starts(scene, "poison", execution=2)
    open_gates(scene, "loop1", "loop2", "loop3")
    scene.wait_for_status("succeeded", poison, *others)
    assert scene.outcomes(poison) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert {failures for job in others for _, _, failures in scene.outcomes(job)} == {0}
    assert not any("one of" in each.cause for job in others for each in scene.executions(job))


def test_a_thread_that_crashes_is_charged_and_its_neighbours_are_not(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, slots=4)
    neighbours = scene.enqueue_together(*holds(scene, "thread1", "thread2"), *async_holds(scene, "loop"))
    wait_for_starts(scene, "thread1", "thread2", "loop")
    culprit = scene.enqueue(jobs.die, "culprit", "segfault")
    scene.wait_for_status("succeeded", culprit)
    wait_for_starts(scene, "thread1", "thread2", "loop", execution=2)
    open_gates(scene, "thread1", "thread2", "loop")
    scene.wait_for_status("succeeded", *neighbours)
    assert scene.outcomes(culprit) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "in die" in scene.executions(culprit)[0].stack
    assert ran(scene, *neighbours) == [[(1, "lost", 0), (2, "succeeded", 0)]] * 3


def effects_are_those_of_successes(scene: Scene) -> None:
    succeeded = scene.connection.execute(
        """select job_id, execution from pgworker.job_executions e join pgworker.jobs on jobs.id = e.job_id
           where e.outcome = 'succeeded' and jobs.task = any (%s)""",
        [[jobs.effect.name, jobs.effect_async.name, jobs.cancel_oneself.name]],
    ).fetchall()
    assert sorted(scene.effects()) == sorted(succeeded)


def _short(directory: str, name: str) -> list[JobRequest]:
    """One of every kind that takes no time."""
    return [
        jobs.effect.job(directory, name),
        jobs.effect_async.job(directory, name),
        jobs.nap.job(directory, name),
        jobs.nap_async.job(directory, name),
    ]


def test_a_worker_killed_while_it_settles_out_of_order_loses_nothing_and_repeats_nothing(
    scene: Scene, start_pool: StartPool
) -> None:
    scene.connection.execute(WITNESSES.encode())
    start_pool(workers=1, slots=4)
    directory, dice = str(scene.directory), random.Random(4)
    scene.warm_up()
    for number in range(8):
        long = names(2, f"long{number}of")
        short = [dice.choice(_short(directory, name)) for name in names(100, f"short{number}of")]
        requests = [*holds(scene, *long[:1]), *short[:30], *async_holds(scene, *long[1:]), *short[30:]]
        before = count(scene, "job_executions")
        everything = scene.enqueue_together(*requests)
        wait_for_starts(scene, *long[:1])
        some = before + dice.randint(1, 80)
        eventually(lambda some=some: count(scene, "job_executions") >= some, "some that have ended")  # type: ignore[misc]
        kill(scene.noted("start", *long[:1])[0].pid)
        open_gates(scene, *long)
        scene.wait_for_status("succeeded", *everything)
        assert all(failures <= 1 for job in everything for _, _, failures in scene.outcomes(job))
    eventually(lambda: not scene.leases(), "no lease")
    effects_are_those_of_successes(scene)
    assert offences(scene.connection, {**STORED, **WITNESSED}) == {}


# -- the handler's own transaction on the loop


def test_a_job_cancelled_inside_its_async_transaction_leaves_nothing_of_it(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, slots=2, cancel_grace=0.5, term_grace=20)
    job = scene.enqueue(jobs.effect_async, "job", "wait inside")
    scene.wait_for("inside", "job")
    assert cancel_job(scene.connection, job) is CancelAnswer.REQUESTED
    scene.wait_for_status("cancelled", job)
    assert (scene.effects(), scene.outcomes(job)) == ([], [(1, "cancelled", 0)])
    after = scene.enqueue_together(*(jobs.effect_async.job(str(scene.directory), name) for name in names(4)))
    scene.wait_for_status("succeeded", *after)
    assert len(pool.workers) == 1
    assert sorted(scene.effects()) == sorted((job, 1) for job in after)


def test_the_transaction_of_the_other_kind_is_an_ordinary_failure_that_names_the_right_one(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=2)
    using = scene.connection
    on_loop = jobs.take_the_wrong_transaction_async.using(using).enqueue().id
    in_thread = jobs.take_the_wrong_transaction.using(using).enqueue().id
    scene.wait_for_status("dead_letter", on_loop, in_thread)
    assert ran(scene, on_loop, in_thread) == [[(1, "failed", 1)]] * 2
    assert "`async with ctx.transaction_async()`" in scene.executions(on_loop)[0].message
    assert "`with ctx.transaction()`" in scene.executions(in_thread)[0].message


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_transaction_whose_lease_is_gone_commits_nothing(kind: str, scene: Scene, start_pool: StartPool) -> None:
    stopped = start_pool(workers=1, slots=4, lease_ttl=TTL)
    task = {"sync": jobs.effect, "async": jobs.effect_async}[kind]
    three = [scene.enqueue(task, name, "wait") for name in names(3)]
    wait_for_starts(scene, *names(3))
    stopped.signal_all(signal.SIGSTOP)
    start_pool(workers=1, slots=4, lease_ttl=TTL, heartbeat_interval=0.3)
    scene.wait_for_status("succeeded", *three)  # only the first executions wait at the gate
    open_gates(scene, *names(3))
    stopped.signal_all(signal.SIGCONT)
    for job in three:
        assert "event=result_lost" in stopped.wait_for_log(f"is gone.*{job}")
    assert ran(scene, *three) == [[(1, "lost", 0), (2, "succeeded", 0)]] * 3
    assert sorted(scene.effects()) == sorted((job, 2) for job in three)
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 0
    assert not scene.leases()
    for job in three:
        assert len([line for line in stopped.log().splitlines() if str(job) in line]) == 1, "one line, and a true one"


def test_nothing_that_an_async_handler_does_to_its_connection_reaches_the_next_job(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=2)
    found = []
    for name in names(3):
        scene.wait_for_status("succeeded", scene.enqueue(jobs.leave_a_mess, name))
        found.append(json.loads((scene.directory / name).read_text()))
    assert len({state[0] for state in found}) <= 2, "the connection of a slot is used again"
    default = scene.scalar("show work_mem")
    assert {tuple(state[1:]) for state in found} == {("", 0, default, 0, 0, "read committed")}


def test_a_restart_of_postgresql_under_async_transactions_loses_nothing_and_charges_nobody(
    outage: Outage, tmp_path: Path, start_pool: StartPool
) -> None:
    start_pool(dsn=outage.server.dsn, workers=1, slots=6, lease_ttl=20)
    with outage.scene(tmp_path) as scene:
        test_pool.with_effects(scene.connection)
        warm = [scene.enqueue(jobs.effect_async, name, "wait") for name in names(6, "warm")]
        wait_for_starts(scene, *names(6, "warm"))  # all at once, so that each slot has a connection
        open_gates(scene, *names(6, "warm"))
        scene.wait_for_status("succeeded", *warm)
        effects = [scene.enqueue(jobs.effect_async, name, "wait") for name in names(3)]
        effects += [scene.enqueue(jobs.effect, name, "wait") for name in names(2, "sync")]
        held = scene.enqueue(jobs.hold_async, "held")
        wait_for_starts(scene, *names(3), *names(2, "sync"), "held")
        outage.server.stop()
    open_gates(scene, *names(3), *names(2, "sync"), "held")
    scene.wait_for("end", "held")
    outage.lasts(seconds=2)
    with outage.scene(tmp_path) as scene:
        later = [scene.enqueue(jobs.effect_async, name) for name in names(12, "later")]
        everything = [*warm, *effects, held, *later]
        scene.wait_for_status("succeeded", *everything)
        assert ran(scene, *everything) == [[(1, "succeeded", 0)]] * len(everything)
        assert sorted(scene.effects()) == sorted((job, 1) for job in (*warm, *effects, *later))
        eventually(lambda: not scene.leases(), "no lease")


@pytest.mark.parametrize("what", ["this task", "the loop"])
def test_a_handler_that_cancels_what_runs_it_costs_no_slot_and_no_effect(
    what: str, scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=2)
    jobs_that_do = [scene.enqueue(jobs.cancel_oneself, name, what) for name in names(4)]
    scene.wait_for_status("succeeded", *jobs_that_do)
    after = scene.enqueue_together(*(jobs.nap_async.job(str(scene.directory), name) for name in names(20, "after")))
    scene.wait_for_status("succeeded", *after)
    effects_are_those_of_successes(scene)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


# -- the end


def test_at_a_drain_what_is_deaf_goes_back_uncharged_and_all_else_ends_as_ever(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=4, drain_timeout=5)
    scene.warm_up()
    named = ["thread1", "thread2", "loop1"]
    running = scene.enqueue_together(*holds(scene, *named[:2]), *async_holds(scene, *named[2:]))
    deaf = scene.enqueue(jobs.hold, "deaf")
    wait_for_starts(scene, *named, "deaf")
    behind = scene.enqueue_together(*scene.quick(*names(20)))
    pool.send(signal.SIGTERM)
    pool.wait_for_log("TERM: draining, 4 running jobs")
    open_gates(scene, *named)
    assert pool.wait() == 75
    assert ran(scene, *running) == [[(1, "succeeded", 0)]] * 3
    assert scene.outcomes(deaf) == [(1, "released", 0)]
    assert ran(scene, *behind) == [[]] * 20
    assert {scene.status(job) for job in (deaf, *behind)} == {"pending"}
    assert not scene.leases()
    assert offences(scene.connection, STORED) == {}


def test_an_async_job_longer_than_the_drain_is_cancelled_and_goes_back_uncharged(
    scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1, slots=4, drain_timeout=4)
    long = scene.enqueue(jobs.hold_async, "long")
    scene.wait_for("start", "long")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 75
    assert len(scene.noted("stop", "long")) == 1
    assert (scene.status(long), scene.outcomes(long)) == ("pending", [(1, "released", 0)])


def test_what_was_claimed_and_not_started_goes_back_at_a_drain(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, slots=2, prefetch_seconds=5)
    scene.warm_up()
    naps = [jobs.nap.job(str(scene.directory), name, 0.1) for name in names(100)]
    all_of_them = scene.enqueue_together(*naps)
    scene.wait_for("start", "job3")
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    started = {line.name for line in scene.noted("start", *names(100))}
    assert started == {line.name for line in scene.noted("end", *names(100))}
    assert 4 <= len(started) < 100
    for name, job in zip(names(100), all_of_them, strict=True):
        assert scene.status(job) == ("succeeded" if name in started else "pending")
    assert not scene.leases()


def test_term_to_one_worker_drains_it_alone_with_all_that_it_runs(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=1, slots=2)
    running = scene.enqueue_together(*holds(scene, "thread"), *async_holds(scene, "loop"))
    worker = wait_for_starts(scene, "thread", "loop")[0].pid
    os.kill(worker, signal.SIGTERM)
    waiting = scene.enqueue(jobs.nap_async, "waiting")
    open_gates(scene, "thread", "loop")
    assert scene.wait_for("start", "waiting").pid != worker
    scene.wait_for_status("succeeded", *running, waiting)
    assert ran(scene, *running, waiting) == [[(1, "succeeded", 0)]] * 3
    assert worker not in pool.workers


def test_jobs_behind_a_thread_that_holds_the_gil_are_given_back_by_the_monitor(
    scene: Scene, start_pool: StartPool
) -> None:
    first = start_pool(workers=1, slots=2, lease_ttl=TTL)
    long = scene.enqueue(jobs.hold, "long")
    scene.wait_for("start", "long")
    scene.warm_up()
    gil = jobs.hold_the_gil.job(str(scene.directory), "gil", 5 * TTL)
    holder, *behind = scene.enqueue_together(gil, *scene.quick(*names(5)))
    scene.wait_for("start", "gil")
    eventually(lambda: count(scene, "job_queue") == 5, "what is behind is back")
    second = start_pool(workers=1, slots=2)
    scene.wait_for_status("succeeded", *behind)
    assert not scene.noted("end", "gil")
    assert {line.pid for line in scene.noted("start", *names(5))} == set(second.workers)
    scene.wait_for_status("succeeded", holder)
    scene.open_gate("long")
    scene.wait_for_status("succeeded", long)
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    again = scene.enqueue(jobs.quick, "again")
    assert scene.wait_for("start", "again").pid in first.workers
    scene.wait_for_status("succeeded", again)
    assert ran(scene, long, holder, *behind) == [[(1, "succeeded", 0)]] * 7


# -- everything at once


def storm_of_jobs(scene: Scene, how_many: int, dice: random.Random) -> Iterator[JobRequest]:
    directory = str(scene.directory)
    for name in names(how_many, "storm"):
        kind = dice.choices(["nap", "fail", "bury", "effect", "wrong effect"], [50, 10, 3, 30, 7])[0]
        sleeper = dice.choice([jobs.nap, jobs.nap_async])
        writer = dice.choice([jobs.effect, jobs.effect_async])
        if kind == "nap":
            yield sleeper.options(max_attempts=25).job(directory, name, dice.choice([0, 0, 0, 0.01, 0.1]))
        elif kind == "fail":
            yield sleeper.options(max_attempts=25).job(directory, name, 0, 1)
        elif kind == "bury":
            yield sleeper.options(max_attempts=2).job(directory, name, 0, 100)
        elif kind == "effect":
            yield writer.job(directory, name)
        else:
            yield writer.job(directory, name, dice.choice(["raise", "raise after"]))


@pytest.mark.timeout(240)
def test_in_a_storm_of_kills_nothing_is_lost_and_nothing_happens_twice(scene: Scene, start_pool: StartPool) -> None:
    scene.connection.execute(WITNESSES.encode())
    seed = os.environ.get("PGWORKER_STORM_SEED", str(random.randrange(10**6)))
    dice = random.Random(seed)
    pool = start_pool(workers=2, slots=8)
    everything = scene.enqueue_together(*storm_of_jobs(scene, 3000, dice))
    left = "select (select count(*) from pgworker.job_queue) + (select count(*) from pgworker.job_leases)"
    ends, kills = time.monotonic() + 180, 0
    while scene.scalar(left):  # a worker that is killed again and again before it has done anything starts late
        assert time.monotonic() < ends, (seed, kills, scene.scalar(left), Counter(map(scene.status, everything)))
        next_kill = time.monotonic() + 0.3
        eventually(lambda at=next_kill: time.monotonic() > at or not scene.scalar(left), "0.3 s")  # type: ignore[misc]
        workers = pool.workers
        if workers and (kills < 12 or count(scene, "job_queue") > 100):  # what is claimed ahead is in no queue
            try:
                kill(dice.choice(workers))
            except ProcessLookupError:
                continue
            kills += 1
    assert kills > 3, seed
    for job in everything:
        scene.connection.execute("insert into chaos.enqueued values (%s)", [job])
    assert offences(scene.connection, {**STORED, **WITNESSED}) == {}, seed
    effects_are_those_of_successes(scene)
    statuses = Counter(map(scene.status, everything))
    assert statuses.keys() == {"succeeded", "dead_letter"}, (seed, statuses)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
