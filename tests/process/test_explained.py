"""What `pgworker jobs explain` says of the jobs of a real pool, at each turn of their lives."""

from __future__ import annotations

import signal
from typing import Any
from uuid import UUID

import pytest

from pgworker.app.task import Task
from pgworker.cli.job_page import job_page
from pgworker.inspection.explain import Explanation, Reason, explain
from pgworker.inspection.facts import read_facts
from pgworker.inspection.jobs import show_job
from tests.process import jobs, test_pool
from tests.process.pool import eventually
from tests.process.test_pool import Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool


def test_a_job_of_a_pool_is_explained_from_its_enqueue_to_its_end(scene: Scene, start_pool: StartPool) -> None:
    def explained(job_id: UUID) -> Explanation:
        return explain(read_facts(scene.connection, job_id))

    def becomes(job_id: UUID, reason: Reason) -> Explanation:
        eventually(lambda: explained(job_id).reason is reason, lambda: f"{reason}, not {explained(job_id)}")
        return explained(job_id)

    held = scene.enqueue(jobs.hold, "held")
    assert explained(held).reason is Reason.NO_WORKERS
    pool = start_pool(workers=1, heartbeat_interval=0.1)
    assert f"(pid {pool.workers[0]})" in becomes(held, Reason.RUNNING).sentence
    behind = scene.enqueue(jobs.hold, "behind")
    assert "1 is busy" in becomes(behind, Reason.WORKERS_BUSY).sentence
    later = scene.enqueue(jobs.hold, "later")
    assert "waits behind 1 job " in becomes(later, Reason.BACKLOG).sentence
    pool.send(signal.SIGUSR2)
    pool.wait_for_log("pause")
    assert "1 is paused (USR2 to the master resumes)" in becomes(behind, Reason.WORKERS_NOT_CLAIMING).sentence
    assert explained(held).reason is Reason.RUNNING
    scene.open_gate("held")
    becomes(held, Reason.SUCCEEDED)
    assert "1 is paused (USR2" in becomes(behind, Reason.WORKERS_NOT_CLAIMING).sentence
    pool.send(signal.SIGUSR2)
    becomes(behind, Reason.RUNNING)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(("task", "frames"), [(jobs.nap, 5), (jobs.nap_async, 3)], ids=["thread", "loop"])
def test_the_traceback_on_the_page_of_a_job_begins_with_its_handler(
    task: Task[..., Any], frames: int, slots: int, scene: Scene, start_pool: StartPool
) -> None:
    start_pool(workers=1, slots=slots)
    job = scene.enqueue(task.options(max_attempts=1), "job", 0, 1)
    scene.wait_for_status("dead_letter", job)
    stored = show_job(scene.connection, job)
    page = list(job_page(stored, "it has failed"))
    begins = page.index("stack of execution 1:") + 1
    assert page[begins] == f"      … {frames} frames of pgworker (--json has them)"
    assert page[begins + 1].endswith(f"in {task.name.rpartition('.')[2]}")
    assert page[begins + 2 :] == ['        raise ValueError("as asked")', "    ValueError: as asked"]
    assert "in call" in scene.executions(job)[0].stack
