"""The units under a real systemd: started, watched, drained, reloaded, killed, and what handlers may do in them.

The units are run as they are; drop-ins only shorten times. Pools log in to a PostgreSQL on the same host, by its socket
and the name of their dynamic user, unless a test says otherwise.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from urllib.request import urlopen
from uuid import UUID

import psutil
import pytest

from tests.deploy.conftest import UnitMaker
from tests.deploy.machine import PASSWORD, Machine, Unit
from tests.process.pool import eventually, free_port


def start(unit: Unit) -> Unit:
    unit.start()
    return unit


def hold_one(unit: Unit, gate: str) -> UUID:
    """A job that runs until its gate opens."""
    job = unit.enqueue("hold", gate=gate)
    unit.wait_until(job, "running")
    return job


def seconds_left(unit: Unit) -> int:
    """What the status of a pool that drains says."""
    found = re.search(r"for (\d+) s at most", unit.show("StatusText"))
    return int(found[1]) if found else 1_000


# -- ready, status, reload


def test_a_unit_is_active_when_a_worker_is_ready_and_not_before(unit: UnitMaker, host: Machine) -> None:
    pool = unit()
    pool.edit(Environment="START_GATE=ready")
    host.systemd.systemctl("start", "--no-block", pool.name)
    eventually(lambda: pool.workers, "a worker")
    assert pool.show("ActiveState") == "activating"
    host.open_gate("ready")
    pool.wait_for("ActiveState", "active")


def test_the_status_tells_workers_and_running_jobs(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit("pgworker", workers=2))
    pool.wait_for("StatusText", "2 of 2 workers ready, 0 jobs running")
    job = hold_one(pool, "status")
    pool.wait_for("StatusText", "2 of 2 workers ready, 1 job running")
    host.systemd.systemctl("kill", "--signal=USR2", "--kill-whom=main", pool.name)
    pool.wait_for("StatusText", "2 of 2 workers ready, 1 job running, claiming is paused")
    host.open_gate("status")
    assert pool.result(job) == "first"
    assert 'Status: "2 of 2 workers ready' in host.systemd.systemctl("status", pool.name)


def test_a_reload_replaces_the_workers_by_ones_with_the_app_as_it_is_now(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit(workers=2))
    master, old = pool.master, pool.workers
    job = hold_one(pool, "reload")
    host.install_app("second")
    try:
        host.systemd.systemctl("reload", pool.name)
        eventually(lambda: "workers are replaced" in pool.journal, lambda: pool.journal)
        host.open_gate("reload")
        assert pool.result(job) == "first"
        eventually(lambda: len(pool.workers) == 2 and not set(pool.workers) & set(old), "two new workers")
        assert pool.result(pool.enqueue("version")) == "second"
        assert pool.outcomes(job) == ["succeeded"]
        assert pool.master == master
    finally:
        host.install_app("first")


def test_pools_of_the_template_are_configured_started_and_stopped_by_themselves(unit: UnitMaker) -> None:
    ports = free_port(), free_port()
    pools = [unit(metrics_listen=f"127.0.0.1:{port}") for port in ports]
    first, second = map(start, pools)
    for port in ports:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            assert b"pgworker_build_info" in page.read()
    assert [pool.result(pool.enqueue("version")) for pool in (first, second)] == ["first", "first"]
    first.systemd.systemctl("stop", first.name)
    assert (first.show("ActiveState"), second.show("ActiveState")) == ("inactive", "active")
    assert second.result(second.enqueue("version")) == "first"


# -- stop


def test_a_stop_lets_the_running_job_finish_and_leaves_the_rest_in_the_queue(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit())
    running = hold_one(pool, "stop")
    waiting = pool.enqueue("version")
    host.systemd.systemctl("stop", "--no-block", pool.name)
    eventually(lambda: pool.show("StatusText").startswith("draining: 1 worker left, 1 job running, for "), pool.journal)
    assert pool.show("ActiveState") == "deactivating"
    host.open_gate("stop")
    pool.wait_for("ActiveState", "inactive")
    assert (pool.status(running), pool.status(waiting)) == ("succeeded", "pending")
    assert (pool.show("Result"), pool.show("ExecMainStatus")) == ("success", "0")
    assert pool.processes() == {}


def test_a_drain_that_takes_longer_than_timeoutstopsec_is_not_cut_short(unit: UnitMaker, host: Machine) -> None:
    pool = unit(drain_timeout="60s")
    pool.edit(TimeoutStopSec="1s")
    pool.start()
    job = hold_one(pool, "long")
    host.systemd.systemctl("stop", "--no-block", pool.name)
    eventually(lambda: seconds_left(pool) < 57, lambda: pool.show("StatusText"))
    host.open_gate("long")
    pool.wait_for("ActiveState", "inactive")
    assert (pool.status(job), pool.outcomes(job)) == ("succeeded", ["succeeded"])


def test_a_drain_that_times_out_gives_its_job_back_and_ends_with_75(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit(drain_timeout="1s"))
    job = hold_one(pool, "never")
    host.systemd.systemctl("stop", pool.name)
    assert (pool.show("ActiveState"), pool.show("ExecMainStatus")) == ("failed", "75")
    assert (pool.status(job), pool.outcomes(job)) == ("pending", ["released"])


def test_a_stop_is_hurried_by_quit(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit(drain_timeout="10m"))
    job = hold_one(pool, "never")
    host.systemd.systemctl("stop", "--no-block", pool.name)
    host.systemd.systemctl("kill", "--kill-whom=main", "--signal=QUIT", pool.name)
    pool.wait_for("ActiveState", "failed")
    assert (pool.show("ExecMainStatus"), pool.status(job), pool.outcomes(job)) == ("75", "pending", ["released"])


# -- deaths


def test_a_master_that_hangs_is_aborted_and_its_jobs_run_again_in_the_next_pool(unit: UnitMaker, host: Machine) -> None:
    pool = unit()
    pool.edit(WatchdogSec="2s", RestartSec="100ms")
    pool.start()
    job, before = hold_one(pool, "hang"), pool.processes()
    os.kill(pool.master, signal.SIGSTOP)
    pool.wait_for("NRestarts", "1")
    pool.wait_for("ActiveState", "active")
    eventually(lambda: pool.outcomes(job) == ["lost"] and pool.status(job) == "running", lambda: pool.journal)
    assert not [pid for pid in before if psutil.pid_exists(pid)]
    assert "Watchdog timeout" in pool.journal
    host.open_gate("hang")
    assert pool.result(job) == "first"


def test_a_master_that_is_killed_leaves_no_process_and_its_jobs_run_again_before_their_leases_have_run_out(
    unit: UnitMaker, host: Machine
) -> None:
    pool = unit(workers=2, lease_ttl="5m")
    pool.edit(RestartSec="100ms")
    pool.start()
    job, before = hold_one(pool, "killed"), pool.processes()
    host.systemd.systemctl("kill", "--signal=KILL", "--kill-whom=main", pool.name)
    pool.wait_for("NRestarts", "1")
    pool.wait_for("ActiveState", "active")
    assert not [pid for pid in before if psutil.pid_exists(pid)]
    host.open_gate("killed")
    assert pool.result(job) == "first"
    # Its monitor may have had the moment to say what it saw: then nobody is charged.
    assert pool.outcomes(job) in (["crashed", "succeeded"], ["lost", "succeeded"])


def test_a_worker_that_is_killed_is_replaced_while_the_others_go_on(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit(workers=2))
    master = pool.master
    jobs = [hold_one(pool, "other"), hold_one(pool, "other")]
    os.kill(pool.workers[0], signal.SIGKILL)
    eventually(lambda: sorted(pool.outcomes(jobs[0]) + pool.outcomes(jobs[1])) == ["crashed"], lambda: pool.journal)
    host.open_gate("other")
    assert [pool.result(job) for job in jobs] == ["first", "first"]
    pool.wait_for("StatusText", "2 of 2 workers ready, 0 jobs running")
    assert (pool.master, pool.show("NRestarts"), pool.show("Result")) == (master, "0", "success")


def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_replaced_while_the_others_go_on(
    unit: UnitMaker, host: Machine
) -> None:
    group = Path("/sys/fs/cgroup/memory", f"pgworker-test-{os.getpid()}")
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("no memory controller that a test can limit a process with: /sys/fs/cgroup/memory is not there")
    pool = start(unit(workers=2))
    master = pool.master
    held = hold_one(pool, "memory")
    group.mkdir()
    try:
        group.joinpath("memory.limit_in_bytes").write_text(str(200 << 20))
        for worker in pool.workers:
            group.joinpath("cgroup.procs").write_text(str(worker))
        grown = pool.enqueue("grow")
        assert pool.result(grown) == 2
        host.open_gate("memory")
        assert pool.result(held) == "first"
        assert "oom_kill 1" in group.joinpath("memory.oom_control").read_text()
        assert (pool.outcomes(grown), pool.outcomes(held)) == (["crashed", "succeeded"], ["succeeded"])
        assert (pool.master, pool.show("NRestarts")) == (master, "0")
    finally:
        for process in pool.workers:
            os.kill(process, signal.SIGKILL)
        eventually(lambda: not group.joinpath("cgroup.procs").read_text(), "nobody left in the cgroup")
        group.rmdir()


# -- starts that fail


def test_wrong_configuration_is_not_tried_again(unit: UnitMaker, host: Machine) -> None:
    pool = unit(app="nothing:app")
    pool.edit(RestartSec="0")
    host.systemd.systemctl("start", pool.name, check=False)
    assert (pool.show("ActiveState"), pool.show("ExecMainStatus"), pool.show("NRestarts")) == ("failed", "78", "0")
    assert "there is no module nothing" in pool.journal


def test_a_database_that_is_down_is_tried_again_until_it_is_there(unit: UnitMaker, host: Machine) -> None:
    pool = unit()
    pool.edit(RestartSec="0")
    host.systemd.systemctl("stop", "postgresql")
    try:
        host.systemd.systemctl("start", pool.name, check=False)
        eventually(lambda: int(pool.show("NRestarts")) > 1, lambda: pool.journal)
        assert pool.journal.count("code=exited, status=69") > 1
    finally:
        host.start_server()
    pool.wait_for("ActiveState", "active")


def test_the_status_tells_that_the_database_is_away(unit: UnitMaker, host: Machine) -> None:
    pool = start(unit())
    host.systemd.systemctl("stop", "postgresql")
    try:
        eventually(lambda: "the database can't be reached" in pool.show("StatusText"), lambda: pool.journal)
        assert pool.show("ActiveState") == "active"
    finally:
        host.start_server()
    pool.wait_for("StatusText", "1 of 1 worker ready, 0 jobs running")


# -- the sandbox


def test_a_password_is_nowhere_but_in_the_credential(unit: UnitMaker, host: Machine) -> None:
    pool = unit()
    secret = f"postgresql://pgworker:{PASSWORD}@127.0.0.1:{host.port}/app"
    host.systemd.write("/etc/pgworker/secret", secret, 0o600)
    pool.edit(LoadCredential="dsn:/etc/pgworker/secret")
    pool.start()
    assert pool.result(pool.enqueue("version")) == "first"
    shown = [host.systemd.systemctl("show", pool.name), pool.journal, *pool.processes().values()]
    shown += [Path(f"/proc/{pid}/environ").read_text() for pid in pool.processes()]
    assert not [text for text in shown if PASSWORD in text]
    credential = f"/run/credentials/{pool.name}.service/dsn"
    assert host.systemd.run("cat", credential).stdout == secret
    for path in (credential, "/etc/pgworker/secret"):
        other = host.systemd.run("runuser", "-u", "nobody", "--", "cat", path, check=False)
        assert "Permission denied" in other.stderr


def test_a_handler_runs_in_a_sandbox_as_a_user_of_its_own_with_the_limits_of_its_pool(unit: UnitMaker) -> None:
    pool = start(unit(nice=5, memory_limit="1G", cpus="0"))
    found = pool.result(pool.enqueue("surroundings"))
    assert 61_184 <= found.pop("uid") <= 65_519, "the range of dynamic users"
    assert found == {
        "user": "pgworker",
        "capabilities": 0,
        "no_new_privileges": "1",
        "seccomp": "2",
        "umask": "0077",
        "nice": 5,
        "cpus": 1,
        "core": 0,
        "data": 1 << 30,
        "files": 16_384,
        "writable": [],
        "writes_state": True,
        "writes_tmp": True,
    }


def test_a_handler_that_overruns_is_killed_in_the_sandbox_as_everywhere(unit: UnitMaker) -> None:
    pool = start(unit(cancel_grace="0.2s", term_grace="0.2s"))
    job = pool.enqueue_once("overrun", seconds=1)
    pool.wait_until(job, "dead_letter")
    assert pool.outcomes(job) == ["timed_out"]
    row = pool.connection.execute("select error::text from pgworker.job_executions where job_id = %s", [job]).fetchone()
    assert row is not None
    assert "wait_for_gate" in row[0]


def test_a_pool_on_the_same_host_is_known_to_postgresql_by_the_name_of_its_user(unit: UnitMaker) -> None:
    pool = start(unit())
    assert pool.result(pool.enqueue("version")) == "first"
    statement = "select distinct client_addr::text from pg_stat_activity where usename = 'pgworker'"
    assert pool.connection.execute(statement).fetchall() == [(None,)]
