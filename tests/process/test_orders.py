"""Middleware, orgs and dead-letter hooks in a pool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.process import orders, test_pool
from tests.process.pool import ROOT, eventually
from tests.process.test_pool import Scene, StartPool

Connect = Callable[[], Connection[Any]]
APP = "tests.process.orders:app"

scene = test_pool.scene
start_pool = test_pool.start_pool


@pytest.fixture
def pool(scene: Scene, start_pool: StartPool) -> None:
    start_pool(app=APP)


def job_of(scene: Scene, task: str) -> UUID:
    """The only job of this task, as soon as it is there."""
    asked = "select id from pgworker.jobs where task = %s"
    ((job_id,),) = eventually(lambda: scene.connection.execute(asked, [task]).fetchall(), f"a job of {task}")
    assert isinstance(job_id, UUID)
    return job_id


def result(scene: Scene, job_id: UUID) -> Any:
    scene.wait_for_status("succeeded", job_id)
    return scene.scalar("select result from pgworker.job_executions where job_id = %s", job_id)


@pytest.mark.usefixtures("pool")
def test_middleware_is_around_every_handler(scene: Scene) -> None:
    job = orders.add.using(scene.connection).enqueue(1, 2).id
    assert result(scene, job) == {"task": "add", "returned": 3}


@pytest.mark.usefixtures("pool")
def test_jobs_of_a_handler_are_for_its_org_and_in_its_trace(scene: Scene) -> None:
    with orders.app.org("acme"):
        orders.order.using(scene.connection).options(headers={"traceparent": "00-1"}).enqueue()
    job = job_of(scene, "add")
    assert result(scene, job) == {"task": "add", "returned": 3}
    inherited = scene.connection.execute("select org_id, headers from pgworker.jobs where id = %s", [job]).fetchall()
    assert inherited == [("acme", {"traceparent": "00-1"})]


@pytest.mark.usefixtures("pool")
def test_arguments_that_no_longer_decode_are_a_failure_like_others_and_in_the_end_a_dead_letter(scene: Scene) -> None:
    job = scene.scalar("select pgworker.enqueue('add', %s, max_attempts => 2)", '{"a": 1, "b": "two"}')
    scene.wait_for_status("dead_letter", job)
    assert scene.outcomes(job) == [(1, "failed", 1), (2, "failed", 2)]
    reason = "msgspec.ValidationError: Expected `int`, got `str` - at `$.b`"
    assert scene.executions(job)[-1].message in reason
    told = result(scene, job_of(scene, "add:dead_letter"))
    assert told == {"task": "add:dead_letter", "returned": f"{job} {reason}"}


@pytest.mark.usefixtures("pool")
def test_a_job_that_dies_with_its_worker_calls_its_hook(scene: Scene) -> None:
    job = orders.die.using(scene.connection).options(org_id="acme").enqueue().id
    scene.wait_for_status("dead_letter", job)
    assert scene.outcomes(job) == [(1, "crashed", 1)]
    instead = job_of(scene, "add")
    assert result(scene, instead) == {"task": "add", "returned": 2}
    assert scene.scalar("select org_id from pgworker.jobs where id = %s", instead) == "acme"


@pytest.mark.usefixtures("pool")
def test_hooks_are_declared_again_on_a_new_connection_which_may_lead_to_a_server_that_lagged(scene: Scene) -> None:
    hooks = "select count(*) from pgworker.dead_letter_hooks"
    declared = len(orders.app.dead_letter_hooks)
    eventually(lambda: scene.scalar(hooks) == declared > 0, "hooks")
    scene.connection.execute("delete from pgworker.dead_letter_hooks")
    scene.connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name like 'pgworker%' and pid <> pg_backend_pid()"
    )
    eventually(lambda: scene.scalar(hooks) == declared, "hooks as before")


def test_a_job_without_an_org_is_a_dead_letter_at_once_where_the_app_requires_one(
    scene: Scene, start_pool: StartPool
) -> None:
    start_pool(app="tests.process.orders:strict")
    job = scene.scalar("select pgworker.enqueue('charge')")
    theirs = scene.scalar("select pgworker.enqueue('charge', org_id => 'acme')")
    scene.wait_for_status("dead_letter", job)
    assert scene.outcomes(job) == [(1, "failed", 1)]
    assert scene.executions(job)[0].message.startswith("the app requires an org and this job has none")
    assert result(scene, theirs) == "charged"


@pytest.mark.parametrize("how", [{}, {"preload": True}])
def test_what_an_app_has_the_driver_make_of_values_is_for_its_own_statements(
    how: dict[str, bool], scene: Scene, start_pool: StartPool
) -> None:
    start_pool(app="tests.process.adapters:app", workers=1, slots=2, lease_ttl=4.0, **how)
    held = [scene.scalar(f"select pgworker.enqueue('{task}', '{{\"seconds\": 3}}')") for task in ("hold", "hold_async")]
    scene.wait_for_status("succeeded", *held)
    assert [scene.outcomes(job) for job in held] == [[(1, "succeeded", 0)]] * 2


def test_enqueues_and_handles_of_such_an_app_are_as_ever(dsn: str) -> None:
    command = [sys.executable, "-m", "tests.process.adapters", dsn]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "1508 cancelled\n"
