"""Queues as a whole pool serves them: in order, when due, not while they are paused; and what nobody serves."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import pytest

from pgworker.control.queues import pause_queues, resume_queues
from pgworker.inspection.queues import find_unserved
from pgworker.lifecycle.cancel import CancelCounts, cancel_jobs
from pgworker.lifecycle.purge import purge_queue
from pgworker.model.job import JobRequest
from pgworker.model.selection import JobFilter
from tests.acceptance import tasks
from tests.process import jobs, test_pool
from tests.process.pool import eventually, free_port
from tests.process.test_pool import Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool

NEVER = 600.0
"""Seconds between two polls: whoever starts a job earlier was woken."""


def quick(scene: Scene, *names: str, seconds: float = 0.0, **options: Any) -> list[JobRequest]:
    return [jobs.quick.options(**options).job(str(scene.directory), name, seconds) for name in names]


def started(scene: Scene) -> list[str]:
    return [line.name for line in scene.ledger() if line.event == "start"]


# -- order


@pytest.mark.parametrize("before", [{"queue": "first"}, {"queue": "second", "priority": 9}], ids=["queue", "priority"])
def test_under_load_what_comes_first_waits_for_what_is_claimed_ahead_and_not_for_the_backlog(
    before: dict[str, Any], scene: Scene, start_pool: StartPool
) -> None:
    """By the order of starts: two workers hold two batches each at the most, and a third may be on its way."""
    batch, urgent = 50, [f"urgent{number}" for number in range(5)]
    backlog = [f"backlog{number}" for number in range(3000)]
    start_pool(workers=2, queues=["first", "second"], max_batch=batch)
    scene.enqueue_together(*quick(scene, *backlog, seconds=0.001, queue="second"))
    scene.wait_for("start", backlog[500])
    passed = []
    for name in urgent:
        seen = len(started(scene))
        scene.enqueue_together(*quick(scene, name, **before))
        scene.wait_for("start", name)
        passed.append(started(scene).index(name) - seen)
    assert max(passed) <= 2 * 3 * batch, passed
    assert len(started(scene)) < len(backlog), "the backlog still waited when the last of them had started"


def test_a_worker_runs_the_first_queue_first_and_in_each_the_priorities_from_9_down(
    scene: Scene, start_pool: StartPool
) -> None:
    lanes = [(queue, priority) for queue in ("first", "second") for priority in range(9, -1, -1)]
    names = {lane: [f"{lane[0]}-{lane[1]}-{number}" for number in range(4)] for lane in lanes}
    requests = [
        request
        for queue, priority in reversed(lanes)
        for request in quick(scene, *names[queue, priority], queue=queue, priority=priority)
    ]
    start_pool(workers=1, queues=["first", "second"])
    ids = scene.enqueue_together(*requests)
    scene.wait_for_status("succeeded", *ids)
    assert started(scene) == [name for lane in lanes for name in names[lane]]


def test_a_scheduled_job_runs_when_it_is_due_and_a_backlog_of_scheduled_ones_is_in_nobodys_way(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    tomorrow = scene.scalar("select clock_timestamp() + interval '1 day'")
    scene.enqueue_together(*quick(scene, *["backlog"] * 1000, priority=9, run_at=tomorrow))
    due = scene.scalar("select clock_timestamp() + interval '1.5 s'")
    [soon, low] = scene.enqueue_together(
        *quick(scene, "soon", priority=9, run_at=due), *quick(scene, "low", priority=0, run_at=due - timedelta(days=1))
    )
    scene.wait_for_status("succeeded", soon, low)
    assert started(scene) == ["low", "soon"]
    when = "select started_at from pgworker.job_executions where job_id = %s"
    assert scene.scalar(when, low) < due <= scene.scalar(when, soon)


# -- pause and resume


def test_no_job_of_a_paused_queue_starts_and_a_resume_wakes_the_pool(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(queues=["first", "second"], poll_interval=NEVER)
    scene.wait_for_status("succeeded", *scene.enqueue_together(*quick(scene, "before", queue="first")))
    assert pause_queues(scene.connection, ["first"]) == {"first"}
    paused = scene.enqueue_together(*quick(scene, "a", "b", "c", queue="first", priority=9))
    other = scene.enqueue_together(*quick(scene, "d", "e", queue="second", priority=0))
    scene.wait_for_status("succeeded", *other)
    assert sorted(started(scene)) == ["before", "d", "e"]
    assert {scene.status(job) for job in paused} == {"pending"}
    assert resume_queues(scene.connection, ["first"]) == {"first"}
    scene.wait_for_status("succeeded", *paused)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def test_a_pause_under_load_ends_the_claims_and_after_it_every_job_runs_once(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(queues=["busy", "other"])
    names = [f"job{number}" for number in range(600)]
    ids = scene.enqueue_together(*quick(scene, *names, seconds=0.005, queue="busy"))
    eventually(lambda: len(started(scene)) > 50, "some that run")
    pause_queues(scene.connection, ["busy"])
    eventually(lambda: scene.leases() == 0, "what was claimed is done")
    waits = "select count(*) from pgworker.job_queue where queue = 'busy'"
    left = scene.scalar(waits)
    assert left > 0
    scene.wait_for_status("succeeded", *scene.enqueue_together(*quick(scene, "other", queue="other")))
    assert (scene.scalar(waits), scene.leases()) == (left, 0)
    resume_queues(scene.connection, ["busy"])
    scene.wait_for_status("succeeded", *ids)
    assert Counter(started(scene)) == Counter([*names, "other"])


def test_what_waits_in_a_worker_behind_a_long_job_goes_back_to_the_paused_queue(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1)
    scene.warm_up()
    long, *behind = scene.enqueue_together(
        jobs.hold.job(str(scene.directory), "long"), *quick(scene, "behind", "waiting")
    )
    scene.wait_for("start", "long")
    pause_queues(scene.connection, ["default"])
    eventually(lambda: scene.scalar("select count(*) from pgworker.job_queue") == 2, "what had not started is back")
    scene.open_gate("long")
    scene.wait_for_status("succeeded", long)
    eventually(lambda: scene.leases() == 0, "a worker with nothing to do")
    assert not scene.noted("start", "behind", "waiting")
    resume_queues(scene.connection, ["default"])
    scene.wait_for_status("succeeded", *behind)


def test_a_job_of_a_paused_queue_whose_worker_is_killed_runs_again_when_the_queue_is_resumed(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(queues=["default", "other"])
    job = scene.enqueue(jobs.hold, "job")
    worker = scene.wait_for("start", "job").pid
    pause_queues(scene.connection, ["default"])
    os.kill(worker, signal.SIGKILL)
    scene.wait_for_status("failed", job)
    scene.wait_for_status("succeeded", *scene.enqueue_together(*quick(scene, "other", queue="other")))
    assert [line.execution for line in scene.noted("start", "job")] == [1]
    scene.open_gate("job")
    resume_queues(scene.connection, ["default"])
    scene.wait_for_status("succeeded", job)


# -- what nobody serves


def test_jobs_of_a_task_that_nobody_serves_wait_are_told_of_and_run_when_somebody_does(
    scene: Scene, start_pool: StartPool
) -> None:
    handles = tasks.app.enqueue_many([tasks.add.job(1, number) for number in range(3)], scene.connection)
    unknown = [handle.id for handle in handles]
    typo = "select pgworker.enqueue('pay', queue => 'elsewhere')"
    scene.connection.execute(typo.encode())
    address = f"127.0.0.1:{free_port()}"
    pool = start_pool(heartbeat_interval=0.3, metrics_listen=address)
    scene.wait_for_status("succeeded", *scene.enqueue_together(*quick(scene, "known")))
    line = pool.wait_for_log("no worker serves it")
    assert "WARNING monitor  3 due jobs of task add wait, and no worker serves it: is it deployed" in line
    assert "queue=default task=add" in line
    line = pool.wait_for_log("event=queue_unserved")
    assert "WARNING monitor  1 due jobs wait in queue elsewhere, which no living worker serves" in line
    assert "queue=elsewhere" in line
    with urlopen(f"http://{address}/metrics", timeout=10) as page:
        assert 'pgworker_jobs_unserved{queue="default"} 3.0' in page.read().decode().splitlines()
    assert {scene.status(job) for job in unknown} == {"pending"}
    found = find_unserved(scene.connection)
    assert [(one.task, one.is_queue_served) for one in found] == [("add", True), ("pay", False)]

    start_pool(app="tests.acceptance.tasks:app", workers=1)
    scene.wait_for_status("succeeded", *unknown)
    eventually(lambda: {one.queue for one in find_unserved(scene.connection)} == {"elsewhere"}, "ours are served")
    served = "select count(*) from pgworker.served_tasks join pgworker.worker_heartbeats on digest = tasks_digest"
    eventually(lambda: scene.scalar(served) == 3, "two workers of the one app, one of the other")


# -- cancel and purge


def test_a_cancel_of_many_stops_those_that_run_and_the_others_never_start(scene: Scene, start_pool: StartPool) -> None:
    start_pool()
    kind = [jobs.cooperate.options(org_id="acme").job(str(scene.directory), name) for name in ("kind", "too")]
    running = scene.enqueue_together(*kind)
    for name in ("kind", "too"):
        scene.wait_for("start", name)
    waits = scene.enqueue_together(*quick(scene, "a", "b", "c", org_id="acme"))
    others = scene.enqueue_together(*quick(scene, "others"))
    assert cancel_jobs(scene.connection, JobFilter(org_id="acme")) == CancelCounts(cancelled=3, requested=2)
    scene.wait_for_status("cancelled", *running, *waits)
    scene.wait_for_status("succeeded", *others)
    assert [scene.outcomes(job) for job in running] == [[(1, "cancelled", 0)]] * 2
    assert not scene.noted("start", "a", "b", "c")


def test_a_purge_leaves_the_running_job_alone(scene: Scene, start_pool: StartPool) -> None:
    start_pool(workers=1)
    running = scene.enqueue(jobs.hold, "running")
    scene.wait_for("start", "running")
    waits = scene.enqueue_together(*quick(scene, "a", "b"))
    assert purge_queue(scene.connection, "default") == 2
    scene.open_gate("running")
    scene.wait_for_status("succeeded", running)
    assert [scene.outcomes(job) for job in waits] == [[(1, "cancelled", 0)]] * 2
