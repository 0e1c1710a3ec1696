"""What a pool tells of its workers in their heartbeats."""

from __future__ import annotations

import signal

from pgworker.inspection.workers import WorkerRow, list_workers
from tests.process import jobs, test_pool
from tests.process.pool import eventually
from tests.process.test_pool import Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool


def states(scene: Scene) -> list[str | None]:
    return [worker.state for worker in list_workers(scene.connection)]


def test_heartbeats_tell_which_worker_runs_a_job_and_what_it_has_used(scene: Scene, start_pool: StartPool) -> None:
    pool = start_pool(workers=2, heartbeat_interval=0.1)
    eventually(lambda: states(scene) == ["idle", "idle"], "two idle workers")
    job = scene.enqueue(jobs.hold, "held")
    eventually(lambda: "busy" in states(scene), "a busy worker")

    def find_busy() -> WorkerRow:
        return next(worker for worker in list_workers(scene.connection) if worker.runs)

    [run] = find_busy().runs
    assert (run.job_id, run.task, run.queue, run.execution) == (job, "tests.process.jobs.hold", "default", 1)
    eventually(lambda: find_busy().runs[0].seconds > run.seconds, "it has run for longer")
    eventually(lambda: (find_busy().uss_bytes or 0) > 1 << 20, "its memory is known: a moment after a fork it is less")
    busy = find_busy()
    assert busy.pid in pool.workers
    assert busy.cpu_seconds is not None
    assert busy.cpu_seconds > 0
    pool.send(signal.SIGUSR2)
    eventually(lambda: states(scene) == ["paused", "paused"], "both are paused")
    assert [len(worker.runs) for worker in list_workers(scene.connection) if worker.pid == busy.pid] == [1]
    scene.open_gate("held")
    scene.wait_for_status("succeeded", job)
    assert states(scene) == ["paused", "paused"]
    eventually(lambda: sum(worker.jobs_done for worker in list_workers(scene.connection)), "one that has done a job")
    assert sorted(worker.jobs_done for worker in list_workers(scene.connection)) == [0, 1]
    pool.send(signal.SIGTERM)
    eventually(lambda: not states(scene), "nobody is left")
