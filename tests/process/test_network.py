"""Connections that fall silent or slow under a pool, while TCP finds nothing wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pgworker.app.task import Task
from tests.chaos.proxy import Proxy
from tests.process import jobs
from tests.process.pool import Pool, eventually, start

TTL = 6.0


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with Proxy.before(dsn) as started:
        yield started


@pytest.fixture
def pool(proxy: Proxy, dsn: str, tmp_path: Path) -> Iterator[Pool]:
    with start(proxy.dsn(dsn), tmp_path / "log", workers=2, lease_ttl=TTL, heartbeat_interval=1) as started:
        started.wait_for_log("event=pool_ready")
        yield started


@pytest.fixture
def db(connect: Callable[[], Connection[Any]]) -> Connection[Any]:
    return connect()


def outcomes(db: Connection[Any]) -> list[str]:
    return [outcome for (outcome,) in db.execute("select outcome from pgworker.job_executions order by execution")]


def ran(directory: Path, name: str, times: int = 1) -> bool:
    ledger = directory / "ledger"
    return ledger.exists() and ledger.read_text().count(f"start {name} ") >= times


def enqueue(db: Connection[Any], task: Task[..., Any], directory: Path, name: str) -> None:
    task.using(db).enqueue(str(directory), name)


def test_a_pool_whose_connections_fell_silent_is_at_work_again_when_there_is_a_server(
    pool: Pool, proxy: Proxy, db: Connection[Any], tmp_path: Path
) -> None:
    workers = pool.workers
    enqueue(db, jobs.cooperate, tmp_path, "cooperates")
    eventually(lambda: ran(tmp_path, "cooperates"), pool.log)
    proxy.blackhole()
    eventually(lambda: "stop cooperates" in (tmp_path / "ledger").read_text(), pool.log)  # its lease is about to end
    proxy.heal()  # but for what has lost bytes: that says nothing any more
    enqueue(db, jobs.quick, tmp_path, "next")
    eventually(lambda: ran(tmp_path, "next") and ran(tmp_path, "cooperates", times=2), pool.log)
    assert "no answer within" in pool.log()
    assert set(workers) <= set(pool.workers), "nobody had to be killed for it"


@pytest.mark.parametrize("task", [jobs.effect, jobs.effect_async], ids=["thread", "loop"])
def test_whose_commit_is_never_answered_runs_again_when_it_has_certainly_not_happened(
    proxy: Proxy, dsn: str, db: Connection[Any], tmp_path: Path, task: Task[..., Any]
) -> None:
    db.execute("create table effect (job uuid, execution int)")
    with start(proxy.dsn(dsn), tmp_path / "log", workers=1, lease_ttl=TTL, heartbeat_interval=1) as pool:
        pool.wait_for_log("event=pool_ready")
        proxy.silence_from("^commit", only="pgworker worker * transaction")
        enqueue(db, task, tmp_path, "effect")
        eventually(lambda: db.execute("select execution from effect").fetchall() == [(2,)], pool.log)
        eventually(lambda: outcomes(db) == ["failed", "succeeded"], pool.log)
        assert "event=worker_killed" not in pool.log()


def test_a_listener_that_hears_nothing_any_more_is_replaced(pool: Pool, proxy: Proxy, db: Connection[Any]) -> None:
    def listeners() -> set[int]:
        named = "select pid from pg_stat_activity where application_name = 'pgworker monitor listener'"
        return {pid for (pid,) in db.execute(f"{named} and datname = current_database()".encode())}

    before = eventually(listeners, pool.log)
    proxy.blackhole("pgworker monitor listener")
    pool.wait_for_log("event=listening_lost")
    proxy.heal()
    eventually(lambda: listeners() - before, pool.log)


def test_half_a_second_of_latency_costs_no_lease_of_six_seconds(
    pool: Pool, proxy: Proxy, db: Connection[Any], tmp_path: Path
) -> None:
    enqueue(db, jobs.hold, tmp_path, "holds")
    eventually(lambda: ran(tmp_path, "holds"), pool.log)
    proxy.delay(0.5)
    renewed = "select expires_at > claimed_at + %s * interval '1 second' from pgworker.job_leases"
    eventually(lambda: db.execute(renewed, [2 * TTL]).fetchone() == (True,), pool.log)
    (tmp_path / "holds").touch()
    proxy.heal()
    eventually(lambda: outcomes(db) == ["succeeded"], pool.log)


def test_who_has_set_a_lease_too_short_for_the_line_is_told(proxy: Proxy, dsn: str, tmp_path: Path) -> None:
    with start(proxy.dsn(dsn), tmp_path / "log", workers=1, lease_ttl=1, heartbeat_interval=1) as pool:
        pool.wait_for_log("event=pool_ready")
        proxy.delay(0.3)
        pool.wait_for_log("event=line_slow")


def test_a_monitor_behind_a_lock_gives_up_at_the_server_too_and_leaves_nobody_waiting_there(
    dsn: str, tmp_path: Path, connect: Callable[[], Connection[Any]]
) -> None:
    db, other = connect(), connect()
    waiting = (
        "select pid from pg_stat_activity where application_name = 'pgworker monitor' and wait_event_type = 'Lock'"
        " and datname = current_database()"
    )
    with start(dsn, tmp_path / "log", workers=1, lease_ttl=12, heartbeat_interval=1) as pool:
        pool.wait_for_log("event=pool_ready")
        with other.transaction():
            other.execute("lock table pgworker.worker_heartbeats in access exclusive mode")
            [(first,)] = eventually(lambda: db.execute(waiting).fetchall(), pool.log)
            second = eventually(lambda: [pid for (pid,) in db.execute(waiting) if pid != first], pool.log)
            assert db.execute(waiting).fetchall() == [(second[0],)]
        pool.wait_for_log("event=database_back")
