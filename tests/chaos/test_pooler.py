"""A pool works through PgBouncer in transaction mode, which keeps nothing of a session."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgworker import App, ConfigurationError, Status
from pgworker.inspection.progress import read_progress
from pgworker.lifecycle.cancel import cancel_job
from tests.chaos.pooler import Pooler
from tests.chaos.servers import PostgresServer
from tests.process import jobs
from tests.process.pool import ROOT, Pool, eventually, start
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


@pytest.fixture(params=["auth_file", "auth_query"])
def by_scram(request: pytest.FixtureRequest, directory: Path) -> Iterator[str]:
    """The DSN of a role with a password, through a pooler; both server and pooler ask for it by SCRAM-SHA-256.

    The pooler has the role's SCRAM secret in its file, or looks it up as another role, whose password it knows.
    """
    with PostgresServer() as server, server.connect() as operator:
        dsn = server.make_database()
        operator.execute("create role guest login superuser password 'of guest'")
        operator.execute("create role lookup login superuser password 'of lookup'")
        asked = "".join(f"host all {role} all scram-sha-256\n" for role in ("guest", "lookup"))
        rules = server.data / "pg_hba.conf"
        rules.write_text(asked + rules.read_text())
        operator.execute("select pg_reload_conf()")
        [(secret,)] = operator.execute("select rolpassword from pg_authid where rolname = 'guest'").fetchall()
        assert secret.startswith("SCRAM-SHA-256$")
        eventually(lambda: not _lets_in(make_conninfo(dsn, user="guest", password="wrong")), "the server's new rules")
        known: dict[str, Any] = {"secrets": {"guest": secret}}
        if request.param == "auth_query":
            known = {"secrets": {"lookup": "of lookup"}, "auth_user": "lookup"}
        with Pooler(dsn, directory, users=(), auth_type="scram-sha-256", **known) as pooler:
            yield make_conninfo(pooler.through(dsn), user="guest", password="of guest")


def _lets_in(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


def test_who_has_the_password_works_through_a_pooler_that_asks_by_scram(by_scram: str, tmp_path: Path) -> None:
    with start(by_scram, tmp_path / "pool.log", workers=2, pooler=True) as pool:
        pool.wait_for_log("the pool is ready")
        with psycopg.connect(by_scram, autocommit=True, prepare_threshold=None) as connection:
            job = jobs.quick.using(connection).enqueue(str(tmp_path), "by scram")
        app = App(by_scram)
        app.job(job.id).wait(timeout=30)
        assert app.job(job.id).status() is Status.SUCCEEDED
        app.close()
        assert "of guest" not in pool.log()


def test_a_wrong_password_at_a_pooler_is_a_mistake_to_mend_and_not_told_on(by_scram: str) -> None:
    wrong = make_conninfo(by_scram, password="s3cret")
    app = App(wrong)
    with pytest.raises(ConfigurationError, match="Check user and password") as raised:
        app.job("01890000-0000-7000-8000-000000000000").status()
    app.close()
    command = [sys.executable, "-m", "pgworker", "status", "--dsn", wrong]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == ConfigurationError.exit_code
    assert "Check user and password" in told.stderr
    assert "s3cret" not in f"{raised.value}{told.stdout}{told.stderr}"
