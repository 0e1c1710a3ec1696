"""A pool works through PgBouncer in transaction mode, which keeps nothing of a session."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pgworker.inspection.progress import read_progress
from pgworker.lifecycle.cancel import cancel_job
from tests.chaos.pooler import Pooler
from tests.process import jobs
from tests.process.pool import Pool, eventually, start
from tests.process.test_pool import Scene, with_effects
from tests.sql.invariants import STORED, offences


@pytest.fixture
def pooler(dsn: str, directory: Path) -> Iterator[Pooler]:
    with Pooler(dsn, directory) as started:
        yield started


@pytest.fixture
def scene(connect: Callable[[], Connection[Any]], tmp_path: Path) -> Scene:
    return Scene(with_effects(connect()), tmp_path)


@pytest.fixture
def pool(pooler: Pooler, tmp_path: Path) -> Iterator[Pool]:
    with start(pooler.dsn, tmp_path / "pool.log", workers=2, slots=2, pooler=True, poll_interval=0.2) as started:
        started.wait_for_log("the pool is ready")
        yield started


def test_jobs_of_all_kinds_run_through_a_pooler(scene: Scene, pool: Pool) -> None:
    succeed = [
        *(scene.enqueue(jobs.quick, f"quick{n}") for n in range(30)),
        *(scene.enqueue(task, f"{task.name}{n}") for n in range(10) for task in (jobs.effect, jobs.effect_async)),
        *(scene.enqueue(task, task.name, 0.1, 2) for task in (jobs.nap, jobs.nap_async)),
    ]
    scene.wait_for_status("succeeded", *succeed)
    assert Counter(scene.effects()) == {(job, 1): 1 for job in succeed[30:50]}
    assert [scene.outcomes(job) for job in succeed[50:]] == [
        [(1, "failed", 1), (2, "failed", 2), (3, "succeeded", 2)]
    ] * 2
    assert offences(scene.connection, STORED) == {}
    assert "database" not in re.sub("database=", "", pool.log())


def test_a_cancel_is_heard_of_by_polling(scene: Scene, pool: Pool) -> None:
    job = scene.enqueue(jobs.cooperate, "cancelled")
    scene.wait_for("start", "cancelled")
    cancel_job(scene.connection, job)
    # The leases of 60 s would be renewed after 20: whoever hears of it by then has polled.
    eventually(lambda: scene.status(job) == "cancelled", "cancelled", within=15)


def test_progress_passes_through_a_pooler(scene: Scene, pool: Pool) -> None:
    job = scene.enqueue(jobs.tell, "job", "wait")
    eventually(lambda: (said := read_progress(scene.connection, job)) and said.fraction == 0.5, "half of it")
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)


def test_nothing_of_a_session_is_left_at_the_server(scene: Scene, pool: Pool) -> None:
    scene.wait_for_status("succeeded", *(scene.enqueue(jobs.effect, f"{n}") for n in range(10)))
    scene.wait_for_status("succeeded", *(scene.enqueue(jobs.quick, f"{n}") for n in range(50)))
    pooled = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    assert scene.scalar(f"select count(*) {pooled}") >= 1
    assert (
        scene.scalar(f"select count(*) from pg_locks where locktype = 'advisory' and pid in (select pid {pooled})") == 0
    )
    assert scene.scalar(f"select count(*) {pooled} and query ~* '^(listen|prepare|set )'") == 0


def test_a_pool_survives_the_end_of_its_pooler(scene: Scene, pool: Pool, pooler: Pooler) -> None:
    running = scene.enqueue(jobs.hold, "running")
    scene.wait_for("start", "running")
    pooler.restart()
    scene.open_gate("running")
    after = scene.enqueue(jobs.effect, "after")
    scene.wait_for_status("succeeded", running, after)
    assert scene.outcomes(running) == [(1, "succeeded", 0)]


def test_a_paused_pooler_only_makes_a_pool_wait(scene: Scene, pool: Pool, pooler: Pooler) -> None:
    running = scene.enqueue(jobs.hold, "running")
    scene.wait_for("start", "running")
    pooler.pause()
    scene.open_gate("running")
    scene.wait_for("end", "running")
    assert scene.status(running) == "running"
    pooler.resume()
    scene.wait_for_status("succeeded", running, scene.enqueue(jobs.quick, "after"))
    assert scene.outcomes(running) == [(1, "succeeded", 0)]


def test_a_pool_that_was_not_told_of_its_pooler_says_what_to_do(scene: Scene, pooler: Pooler, tmp_path: Path) -> None:
    with start(pooler.dsn, tmp_path / "untold.log", workers=2, poll_interval=0.01) as untold:
        untold.wait_for_log("the pool is ready")
        for number in range(50):
            scene.enqueue(jobs.quick, f"{number}")
        untold.wait_for_log("pgworker start --pooler")
