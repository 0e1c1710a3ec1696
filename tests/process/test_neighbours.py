"""Whole pools that are killed at once: others on their host prove that, and take nobody for dead who may live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from pgworker.linux.pidfd import is_gone
from tests.process import jobs, test_pool
from tests.process.pool import APP, ROOT, Pool, eventually
from tests.process.test_linux_process import IN_A_PID_NAMESPACE
from tests.process.test_pool import Outage, Scene, StartPool, kill, kill_at_once

scene = test_pool.scene
start_pool = test_pool.start_pool
outage = test_pool.outage

LONG = 300.0
"""Seconds: a lease whose end no test waits for."""

SOON = {"workers": 1, "lease_ttl": LONG, "heartbeat_interval": 0.5}
"""Settings of a pool that looks after its neighbours twice a second."""


def hold(scene: Scene, pool: Pool, name: str) -> int:
    """Have the pool, the only one there is, run a job until its gate opens; the pid of its worker, as that sees it."""
    scene.enqueue(jobs.hold, name)
    pid = scene.wait_for("start", name).pid
    eventually(
        lambda: scene.scalar("select exists (select from pgworker.worker_heartbeats where pid = %s)", pid), "beat"
    )
    return pid


@pytest.fixture
def apart() -> tuple[str, ...]:
    """The command that runs another one in a PID namespace of its own, on a host of the same name.

    What that starts has pids that nobody will have outside for long, as they are given out in turn.
    """
    last, most = (int(Path("/proc/sys/kernel", name).read_text()) for name in ("ns_last_pid", "pid_max"))
    last = max(300, (last + most // 2) % most)
    command = (*IN_A_PID_NAMESPACE, "sh", "-c", f'echo {last} > /proc/sys/kernel/ns_last_pid && exec "$@"', "sh")
    made = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no PID namespace can be made here, or no pid chosen in it: {made.stderr.strip()}")
    return command


def test_the_jobs_of_a_pool_that_was_killed_at_once_run_again_in_the_next_pool_before_their_leases_have_run_out(
    scene: Scene, start_pool: StartPool
) -> None:
    killed = start_pool(workers=2, lease_ttl=LONG)
    running = [scene.enqueue(jobs.hold, name) for name in ("a", "b")]
    before = [scene.wait_for("start", name).pid for name in ("a", "b")]
    kill_at_once(killed)
    expires_at = scene.scalar("select min(expires_at) from pgworker.job_leases")
    following = start_pool(**SOON | {"workers": 2})
    after = [scene.wait_for("start", name, execution=2).pid for name in ("a", "b")]
    assert set(after) == set(following.workers)
    assert scene.scalar("select max(finished_at) from pgworker.job_executions") < expires_at
    for name in ("a", "b"):
        scene.open_gate(name)
    scene.wait_for_status("succeeded", *running)
    assert [scene.outcomes(job) for job in running] == [[(1, "crashed", 1), (2, "succeeded", 1)]] * 2
    for job, pid in zip(running, before, strict=True):
        assert f"(pid {pid}) is gone, and its pool is silent" in scene.executions(job)[0].cause
    assert following.log().count("what it held goes back now") == 2
    assert scene.scalar("select count(*) from pgworker.worker_heartbeats where ended_at is null") == 2


def test_a_pool_sees_that_the_clock_of_its_server_was_set_and_takes_nothing_back_for_it(
    scene: Scene, start_pool: StartPool
) -> None:
    """A function of that name stands in for a server whose clock is set: our statements find it first."""
    db = scene.connection

    def set_clock(by: str) -> None:
        db.execute(
            "create or replace function public.clock_timestamp() returns timestamptz language sql as"
            f" $$ select pg_catalog.clock_timestamp() + interval '{by}' $$".encode()
        )

    set_clock("0")
    db.execute(f"alter database {db.info.dbname} set search_path = public, pg_catalog")
    one, other = start_pool(**SOON), start_pool(**SOON)
    running = [scene.enqueue(jobs.hold, name) for name in ("a", "b")]
    for name in ("a", "b"):
        scene.wait_for("start", name)
    for by, said in (("1 hour", "forward by 3600 s"), ("0", "back by 3600 s")):
        set_clock(by)
        for pool in (one, other):
            pool.wait_for_log(f"WARNING.*the database's clock was set {said}: .* event=clock_set")
    for name in ("a", "b"):
        scene.open_gate(name)
    scene.wait_for_status("succeeded", *running)
    assert [scene.outcomes(job) for job in running] == [[(1, "succeeded", 0)]] * 2


def test_a_pool_that_runs_already_takes_over_too_and_says_so_once(scene: Scene, start_pool: StartPool) -> None:
    killed = start_pool(workers=1, lease_ttl=LONG)
    hold(scene, killed, "job")
    others = [start_pool(**SOON) for _ in range(2)]
    kill_at_once(killed)
    assert scene.wait_for("start", "job", execution=2).pid in [pid for pool in others for pid in pool.workers]
    assert sum(pool.log().count("event=worker_gone") for pool in others) == 1
    scene.open_gate("job")
    eventually(lambda: not scene.leases(), "its end")
    assert [line.execution for line in scene.noted("start", "job")] == [1, 2]


@contextmanager
def stopped(pool: Pool) -> Iterator[None]:
    pool.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        pool.signal_all(signal.SIGCONT)


@pytest.mark.parametrize("where", ["here", "in another PID namespace"])
def test_a_pool_that_is_stopped_is_not_taken_for_dead_beside_one_that_is(
    where: str, scene: Scene, start_pool: StartPool, request: pytest.FixtureRequest
) -> None:
    prefix = () if where == "here" else request.getfixturevalue("apart")
    silent = start_pool(workers=1, lease_ttl=LONG, prefix=prefix)
    pid = hold(scene, silent, "silent")
    assert is_gone(pid) == (where != "here"), "as it looks from here"
    with stopped(silent):
        dead = start_pool(workers=1, lease_ttl=LONG)
        hold(scene, dead, "dead")
        kill_at_once(dead)
        start_pool(**SOON)
        scene.wait_for(
            "start", "dead", execution=2
        )  # found in a look that has found the other one too: it beat earlier
        assert scene.scalar("select ended_at is null from pgworker.worker_heartbeats where pid = %s", pid)
        assert scene.leases() == 2
    for name in ("silent", "dead"):
        scene.open_gate(name)
    eventually(lambda: not scene.leases(), "the end of both")
    assert [line.execution for line in scene.noted("start", "silent")] == [1]
    assert [line.execution for line in scene.noted("end", "silent")] == [1]


def test_a_job_of_jobs_run_that_is_killed_goes_to_a_pool_of_its_host_before_its_lease_has_run_out(
    scene: Scene, start_pool: StartPool, dsn: str
) -> None:
    job = scene.enqueue(jobs.hold, "job")
    command = [sys.executable, "-m", "pgworker", "jobs", "run", str(job), "--app", APP, "--dsn", dsn]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as foreground:
        assert scene.wait_for("start", "job").pid == foreground.pid
        foreground.kill()
    expires_at = scene.scalar("select expires_at from pgworker.job_leases")
    start_pool(**SOON)
    scene.wait_for("start", "job", execution=2)
    assert scene.scalar("select finished_at from pgworker.job_executions") < expires_at


def test_after_an_outage_a_pool_that_lives_speaks_for_its_own_worker(
    outage: Outage, tmp_path: Path, start_pool: StartPool
) -> None:
    """Its monitor knows what the worker ran; a neighbour's could only guess, and is the first one back here."""
    settings = {"dsn": outage.server.dsn, "workers": 1, "lease_ttl": LONG, "heartbeat_interval": 2}
    pool = start_pool(**settings)
    with outage.scene(tmp_path) as scene:
        dead = hold(scene, pool, "job")
        neighbour = start_pool(**settings)
        outage.server.stop()
    kill(dead)
    pool.wait_for_log(f"pid {dead}")
    os.kill(pool.monitor, signal.SIGSTOP)
    outage.lasts(seconds=5)  # longer than a neighbour is silent without being looked at
    with outage.scene(tmp_path) as scene:
        cause = cause_once_a_neighbour_has_looked(scene, pool)
    assert "was killed by SIGKILL, not by pgworker" in cause
    assert "is gone" not in neighbour.log()


def test_after_an_outage_a_pool_that_lives_takes_back_itself_what_its_worker_held_when_its_end_was_recorded_before(
    outage: Outage, tmp_path: Path, start_pool: StartPool
) -> None:
    """Likewise; here the outage comes between the two."""
    settings = {"dsn": outage.server.dsn, "workers": 1, "slots": 2, "lease_ttl": LONG, "heartbeat_interval": 2}
    pool = start_pool(**settings)
    with outage.scene(tmp_path) as scene:
        dead = hold(scene, pool, "job")
        start_pool(**settings)
        with scene.connection.transaction(), suppress(psycopg.OperationalError):
            scene.connection.execute("select from pgworker.job_leases for update")
            kill(dead)
            pool.wait_for_log(f"pid {dead}")
            eventually(lambda: is_ended(outage.server.dsn, dead), "its end is recorded")
            os.kill(pool.monitor, signal.SIGSTOP)
            outage.server.stop()
            scene.connection.execute("select")
    outage.lasts(seconds=5)  # longer than the patience of a neighbour
    with outage.scene(tmp_path) as scene:
        cause = cause_once_a_neighbour_has_looked(scene, pool)
    assert cause.startswith("worker 0 (pid"), "not one of up to two jobs that may have run"


def cause_once_a_neighbour_has_looked(scene: Scene, pool: Pool) -> str:
    """What is recorded of "job" when the pool's monitor, stopped until then, is only the second one to look."""
    back = scene.scalar("select clock_timestamp()")
    beat = "select max(beat_at) > %s from pgworker.worker_heartbeats"
    eventually(lambda: scene.scalar(beat, back), "a beat of the neighbour, and with it a look")
    os.kill(pool.monitor, signal.SIGCONT)
    scene.wait_for("start", "job", execution=2)
    return str(scene.scalar("select cause from pgworker.job_executions"))


def is_ended(dsn: str, pid: int) -> bool:
    with psycopg.connect(dsn) as connection:
        asked = "select count(*) from pgworker.worker_heartbeats where pid = %s and ended_at is not null"
        return connection.execute(asked, [pid]).fetchone() == (1,)
