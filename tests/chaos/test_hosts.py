"""Two pools on two hosts share one database; one of them vanishes, and nothing is lost or settled twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from psycopg import Connection

from tests.chaos.hosts import Host, hosts
from tests.process import jobs
from tests.process.pool import Pool, eventually, start
from tests.process.test_pool import Scene
from tests.sql.invariants import STORED, WITNESSES, offences

TTL = 3.0
"""Seconds: short enough to wait for, and long enough to be renewed on a busy machine."""

StartOn = Callable[[Host], Pool]


@pytest.fixture
def scene(connect: Callable[[], Connection[Any]], tmp_path: Path) -> Scene:
    connection = connect()
    connection.execute("create table effect (job_id uuid, execution integer)")
    connection.execute(WITNESSES.encode())
    return Scene(connection, tmp_path)


@pytest.fixture
def two(dsn: str) -> Iterator[list[Host]]:
    with hosts(dsn, "ash", "oak") as made:
        yield made


@pytest.fixture
def start_on(tmp_path: Path) -> Iterator[StartOn]:
    """Starts a pool of one worker on a host, and returns it when it is ready."""
    with ExitStack() as pools:

        def start_one(host: Host) -> Pool:
            log = tmp_path / f"{host.name}{len(list(tmp_path.glob('*.log')))}.log"
            pool = pools.enter_context(
                start(
                    host.dsn, log, prefix=host.prefix, workers=1, lease_ttl=TTL, heartbeat_interval=0.3, cancel_grace=1
                )
            )
            pool.wait_for_log("the pool is ready")
            return pool

        yield start_one


def run_there(scene: Scene, pool: Pool, *names: str) -> list[UUID]:
    """Jobs that the one pool there is has begun or claimed."""
    made = scene.enqueue_together(*(jobs.effect.job(str(scene.directory), name, "wait") for name in names))
    scene.wait_for("start", names[0])
    return made


def no_offences(scene: Scene) -> None:
    assert offences(scene.connection, STORED) == {}
    settled_late = """select * from chaos.recorded join chaos.lease_ended using (lease_id)
                      where recorded.at > lease_ended.at and recorded.xid <> lease_ended.xid"""
    assert scene.connection.execute(settled_late.encode()).fetchall() == []
    twice = "select job_id from effect group by job_id having count(*) > 1"
    assert scene.connection.execute(twice.encode()).fetchall() == []


def test_each_host_has_a_name_and_processes_of_its_own(scene: Scene, two: list[Host], start_on: StartOn) -> None:
    for host in two:
        start_on(host)
    seen = "select array_agg(host order by host), count(distinct pid_space) from pgworker.worker_heartbeats"
    eventually(lambda: scene.connection.execute(seen.encode()).fetchall() == [(["ash", "oak"], 2)], "beats of both")


def test_jobs_of_a_host_that_loses_power_run_on_the_other_when_their_lease_ends(
    scene: Scene, two: list[Host], start_on: StartOn
) -> None:
    ash, oak = two
    (job,) = run_there(scene, start_on(ash), "job")
    start_on(oak)
    expires_at = scene.scalar("select max(expires_at) from pgworker.job_leases")
    ash.kill()
    scene.open_gate("job")
    scene.wait_for("start", "job", execution=2)
    scene.wait_for_status("succeeded", job)
    reclaimed_at = scene.scalar("select finished_at from pgworker.job_executions where job_id = %s order by 1", job)
    assert reclaimed_at >= expires_at
    assert scene.outcomes(job) == [(1, "crashed", 1), (2, "succeeded", 1)]
    assert "its lease expired" in scene.executions(job)[0].cause
    assert scene.effects() == [(job, 2)]
    no_offences(scene)


def test_jobs_of_a_host_whose_cable_is_pulled_run_on_the_other_and_it_settles_none_of_them(
    scene: Scene, two: list[Host], start_on: StartOn
) -> None:
    ash, oak = two
    cut_off = start_on(ash)
    (job,) = run_there(scene, cut_off, "job")
    start_on(oak)
    ash.cut()
    scene.wait_for("start", "job", execution=2, within=60)
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    cut_off.wait_for_log("its lease could not be renewed")
    beats = "select coalesce(max(beat_at), '-infinity') from pgworker.worker_heartbeats where host = 'ash'"
    before = scene.scalar(beats)
    ash.heal()
    eventually(lambda: scene.scalar(beats) > before, "the host that was cut off is back")
    scene.wait_for_status("succeeded", *(scene.enqueue(jobs.quick, f"after{n}") for n in range(6)))
    assert scene.effects() == [(job, 2)]
    assert scene.outcomes(job)[1:] == [(2, "succeeded", 1)]
    no_offences(scene)


def test_a_slow_line_loses_no_lease(scene: Scene, two: list[Host], start_on: StartOn) -> None:
    ash, oak = two
    slow = start_on(ash)
    (job,) = run_there(scene, slow, "job")
    start_on(oak)
    ash.slow(100)
    renewed = "select max(expires_at) >= min(claimed_at) + 4 * %s * interval '1 second' from pgworker.job_leases"
    eventually(lambda: scene.scalar(renewed, TTL), "a lease that was renewed beyond four times its life")
    scene.open_gate("job")
    scene.wait_for_status("succeeded", job)
    assert scene.outcomes(job) == [(1, "succeeded", 0)]
    no_offences(scene)


def test_a_host_that_is_booted_again_takes_part(scene: Scene, two: list[Host], start_on: StartOn) -> None:
    ash, _ = two
    first = start_on(ash)
    ash.kill()
    eventually(lambda: not first.processes(), "nobody left of the pool")
    ash.boot()
    start_on(ash)
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "job"))


def test_a_host_can_lose_power_while_its_pool_is_stopped(scene: Scene, two: list[Host], start_on: StartOn) -> None:
    ash, _ = two
    pool = start_on(ash)
    os.kill(ash.master_of(pool), signal.SIGSTOP)
    entered = psutil.Process(pool.process.pid)
    eventually(lambda: entered.status() == psutil.STATUS_STOPPED, "who started it has stopped itself too")
    ash.kill()
    assert not ash.is_up
    pool.wait()
