"""What real handlers say of how far they are: seen from outside, handed on to the next execution, gone at the end."""

from __future__ import annotations

import signal
from typing import Any
from uuid import UUID

import pytest

from pgworker import App, Progress
from pgworker.app.task import Enqueuer
from pgworker.inspection.progress import read_progress
from pgworker.lifecycle.dead_letters import requeue_dead_letters
from pgworker.model.payload import MAX_RESULT_BYTES
from tests.process import jobs, test_pool
from tests.process.pool import eventually
from tests.process.test_pool import Scene, StartPool, kill
from tests.process.test_slots import NEVER

scene = test_pool.scene
start_pool = test_pool.start_pool

TASKS: dict[str, Enqueuer[[str, str, str], Any]] = {"sync": jobs.tell, "async": jobs.tell_async}
kinds = pytest.mark.parametrize("kind", TASKS)


def wait_until_half(scene: Scene, job: UUID) -> Progress:
    """What the job said, once it is stored."""

    def look() -> Progress | None:
        said = read_progress(scene.connection, job)
        return said if said and said.fraction == 0.5 else None

    said = eventually(look, "progress")
    assert said is not None
    return said


def wait_until_nothing_is_kept(scene: Scene) -> None:
    eventually(lambda: scene.scalar("select count(*) from pgworker.job_progress") == 0, "nothing kept")


@kinds
@pytest.mark.parametrize("slots", [1, 2])
def test_how_far_a_job_is_can_be_seen_while_it_runs_and_not_when_it_has_succeeded(
    kind: str, slots: int, scene: Scene, start_pool: StartPool
) -> None:
    """Though nothing else happens in its worker, and no slot is free or one is."""
    start_pool(workers=1, slots=slots, poll_interval=NEVER)
    job = scene.enqueue(TASKS[kind], "job", "wait")
    said = wait_until_half(scene, job)
    assert (said.execution, said.message, said.checkpoint) == (1, "half", {"execution": 1})
    assert scene.status(job) == "running"
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert read_progress(scene.connection, job) is None
    wait_until_nothing_is_kept(scene)


@kinds
@pytest.mark.parametrize("then", ["raise", "retry", "snooze"])
def test_the_next_execution_has_the_checkpoint_of_one_that_ended_at_once(
    kind: str, then: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    job = scene.enqueue(TASKS[kind], "job", then)
    scene.wait_for("from-None", "job", 1)
    scene.wait_for("from-1", "job", 2)
    scene.wait_for_status("succeeded", job)
    wait_until_nothing_is_kept(scene)


@pytest.mark.parametrize("by", ["somebody", "itself"])
def test_the_next_execution_has_what_was_stored_of_one_that_was_killed(
    by: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    job = scene.enqueue(jobs.tell, "job", "wait" if by == "somebody" else "say more and die")
    wait_until_half(scene, job)
    if by == "somebody":
        kill(scene.wait_for("from-None", "job", 1).pid)
    else:
        scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    [second] = [line.event for line in scene.ledger() if line.execution == 2]
    assert second in ({"from-1"} if by == "somebody" else {"from-1", "from-1-later"})
    wait_until_nothing_is_kept(scene)


def test_the_next_execution_has_the_checkpoint_of_one_that_ran_out_of_time(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1, cancel_grace=0.5, term_grace=0.5)
    job = scene.enqueue(jobs.tell.options(timeout=5), "job", "wait")
    wait_until_half(scene, job)
    scene.wait_for("from-1", "job", 2)
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "timed_out", 1), (2, "succeeded", 1)]


@pytest.mark.parametrize("how", ["wait", "cooperate"])
def test_the_next_execution_has_the_checkpoint_of_one_that_a_drain_ended(
    how: str, scene: Scene, start_pool: StartPool
) -> None:
    first = start_pool(workers=1, drain_timeout=2)
    job = scene.enqueue(jobs.tell, "job", how)
    wait_until_half(scene, job)
    first.send(signal.SIGTERM)
    assert first.wait() == 75
    said = read_progress(scene.connection, job)
    assert said is not None
    assert (scene.status(job), said.fraction) == ("pending", 0.5)
    start_pool(workers=1)
    scene.wait_for("from-1", "job", 2)
    scene.wait_for_status("succeeded", job)
    assert [outcome for _, outcome, _ in scene.outcomes(job)] == ["released", "succeeded"]


@kinds
def test_a_job_that_succeeds_in_its_own_transaction_leaves_nothing(
    kind: str, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    job = scene.enqueue(TASKS[kind], "job", "transaction")
    scene.wait_for("from-1", "job", 2)
    eventually(lambda: wait_until_half(scene, job).execution == 2, "what the second execution said")
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert read_progress(scene.connection, job) is None
    wait_until_nothing_is_kept(scene)


def test_a_dead_letter_keeps_it_for_its_requeue(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1)
    job = scene.enqueue(jobs.give_up, "job")
    scene.wait_for_status("dead_letter", job)
    said = read_progress(scene.connection, job)
    assert said is not None
    assert said.checkpoint == {"execution": 1}
    requeue_dead_letters(scene.connection, [job])
    scene.wait_for("from-1", "job", 2)
    scene.wait_for_status("succeeded", job)
    wait_until_nothing_is_kept(scene)


def test_who_says_it_all_the_time_is_heard_now_and_then_and_holds_up_nobody(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=2)
    job = scene.enqueue(jobs.chatter, "chatter")
    seen: set[float] = set()

    def listen() -> bool:
        said = read_progress(scene.connection, job)
        seen.update([said.fraction] if said else [])
        return len(seen) >= 2

    eventually(listen, "something new")
    quick = scene.enqueue(jobs.quick, "quick")
    scene.wait_for_status("succeeded", quick)
    scene.open_gate("chatter")
    scene.wait_for_status("succeeded", job)
    wait_until_nothing_is_kept(scene)
    assert scene.outcomes(job) == [(1, "succeeded", 0)]


def test_a_result_of_64_kib_comes_back_whole_and_of_one_that_is_a_byte_longer_null(
    dsn: str, scene: Scene, start_pool: StartPool
) -> None:
    pool = start_pool(workers=1)
    app = App(dsn)
    try:
        whole, longer = (scene.enqueue(jobs.fill, size) for size in (MAX_RESULT_BYTES, MAX_RESULT_BYTES + 1))
        assert app.job(whole).wait(30) == "x" * (MAX_RESULT_BYTES - 2)
        assert app.job(longer).wait(30) is None
    finally:
        app.close()
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0
    assert pool.log().count("was not stored: it takes more than the 65536 bytes") == 1
    assert str(longer) in pool.wait_for_log("was not stored")
