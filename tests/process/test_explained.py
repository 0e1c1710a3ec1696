"""What `pgworker jobs explain` says of the jobs of a real pool, at each turn of their lives."""

from __future__ import annotations

import signal
from uuid import UUID

from pgworker.inspection.explain import Explanation, Reason, explain
from pgworker.inspection.facts import read_facts
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
