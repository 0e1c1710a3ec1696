"""The servers that tests may break do what they are asked, and leave nothing behind."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.chaos.servers import PostgresServer, SteppedClock
from tests.process.pool import eventually


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"max_connections": "20"}) as server:
        yield server


def ask(server: PostgresServer, statement: str) -> Any:
    with server.connect() as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def count_of(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("select count(*) from filled").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restarted_server_has_what_was_committed(primary: PostgresServer, mode: Any) -> None:
    with primary.connect() as connection:
        connection.execute("create table if not exists kept (mode text)")
        connection.execute("insert into kept values (%s)", [mode])
    primary.restart(mode)
    assert ask(primary, f"select count(*) from kept where mode = '{mode}'") == 1


def test_a_crashed_server_leaves_no_process_and_recovers(primary: PostgresServer) -> None:
    assert primary._process is not None
    pids = [primary._process.pid, *(child.pid for child in psutil.Process(primary._process.pid).children())]
    with primary.connect() as connection:
        connection.execute("create table crashed (id int)")
        connection.execute("insert into crashed values (1)")
        primary.crash()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "every process gone")
    assert not primary.is_running
    primary.start()
    assert ask(primary, "select count(*) from crashed") == 1
    assert "automatic recovery" in primary.log


def test_a_database_for_jobs_has_the_schema(primary: PostgresServer) -> None:
    with psycopg.connect(primary.make_database()) as connection:
        assert connection.execute("select count(*) from pgworker.jobs").fetchone() == (0,)


def test_backends_end_at_about_the_rate_asked_for(primary: PostgresServer) -> None:
    dice = random.Random(7)
    with primary.terminate_backends(50, dice, like="victim") as ended:

        def be_ended() -> bool:
            with (
                pytest.raises(psycopg.OperationalError),
                psycopg.connect(primary.dsn, application_name="victim") as mine,
            ):
                mine.execute("select pg_sleep(60)")
            return len(ended) >= 3

        eventually(be_ended, "three of them ended")
    assert len(set(ended)) == len(ended)


def test_strangers_leave_no_connection_to_anybody_else(primary: PostgresServer) -> None:
    with psycopg.connect(primary.dsn, application_name="mine") as before, primary.fill_connections():
        with pytest.raises(psycopg.OperationalError):
            before.execute("select 1")
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            psycopg.connect(primary.dsn)
    eventually(lambda: ask(primary, "select 1") == 1, "a place again")


def test_a_locked_table_is_to_be_read_only_afterwards(primary: PostgresServer) -> None:
    dsn = primary.make_database()
    look = b"set lock_timeout = '50ms'; select count(*) from pgworker.jobs"
    with psycopg.connect(dsn, autocommit=True) as connection:
        with primary.locked_table(dsn, "pgworker.jobs"), pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute(look)
        connection.execute(look)


def test_a_pinned_snapshot_keeps_vacuum_from_the_rows_that_it_sees(primary: PostgresServer) -> None:
    size = "select pg_relation_size('pinned')"
    with primary.connect() as connection:
        connection.execute("create table pinned as select from generate_series(1, 100)")
        with primary.pin_xmin(primary.dsn):
            connection.execute("delete from pinned")
            connection.execute("vacuum pinned")
            assert ask(primary, size) > 0

        def is_empty() -> bool:
            connection.execute("vacuum pinned")
            return bool(ask(primary, size) == 0)

        eventually(is_empty, "an empty table")


def test_a_promoted_standby_has_what_its_primary_had(primary: PostgresServer) -> None:
    with primary.connect() as connection:
        connection.execute("create table replicated (id int)")
    with primary.add_standby() as standby:
        with primary.connect() as connection:
            connection.execute("insert into replicated values (1)")
        standby.wait_caught_up(primary)
        with standby.connect() as connection, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("insert into replicated values (2)")
        standby.promote()
        assert ask(standby, "select count(*) from replicated") == 1
        with standby.connect() as connection:
            connection.execute("insert into replicated values (2)")


def test_a_commit_waits_for_a_synchronous_standby() -> None:
    waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    with PostgresServer() as server, server.add_standby(synchronous=True) as standby, server.connect() as connection:
        connection.execute("create table synchronous (id int)")
        standby.stop()
        with ThreadPoolExecutor(1) as another:
            inserted = another.submit(connection.execute, "insert into synchronous values (1)")
            eventually(lambda: ask(server, waits) == 1, "a commit that waits")
            assert not inserted.done()
            standby.start()
            inserted.result()


def test_a_full_tablespace_is_an_error_that_passes() -> None:
    with PostgresServer(small_disk="tablespace", disk_mib=64) as server:
        dsn = server.make_database()
        fill = "insert into filled select repeat(md5(i::text), 30) from generate_series(1, 2000) as i"
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table filled (words text)")
            server.fill_disk()
            with pytest.raises(psycopg.errors.DiskFull):
                connection.execute(fill)
            server.free_disk()
            connection.execute(fill)
        assert count_of(dsn) == 2000
        assert server.is_running


def test_a_standby_has_a_small_tablespace_of_its_own() -> None:
    with PostgresServer(small_disk="tablespace", disk_mib=64) as primary:
        dsn = primary.make_database()
        with primary.add_standby() as standby:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("create table filled as select md5(i::text) from generate_series(1, 2000) as i")
            standby.wait_caught_up(primary)
            standby.fill_disk()
            standby.free_disk()
            assert count_of(make_conninfo(dsn, port=standby.port)) == 2000


def test_a_full_log_ends_the_server_until_there_is_room() -> None:
    with PostgresServer(small_disk="wal", disk_mib=80, settings={"restart_after_crash": "off"}) as server:
        dsn = server.make_database()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create table filled (words text)")
            connection.execute("insert into filled values ('kept')")
            server.fill_disk()
            with pytest.raises(psycopg.OperationalError):
                connection.execute(
                    "insert into filled select repeat(md5(i::text), 60) from generate_series(1, 40000) as i"
                )
        eventually(lambda: not server.is_running, "the server has ended")
        assert "PANIC" in server.log
        server.free_disk()
        server.start()
        assert count_of(dsn) == 1


def test_the_clock_of_a_server_steps_and_nobody_elses_does() -> None:
    with PostgresServer(with_clock=True) as server, server.connect() as connection:

        def ahead() -> float:
            row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
            assert row is not None
            return float(row[0]) - time.time()

        assert abs(ahead()) < 60
        server.step_clock(3600)
        assert 3540 < ahead() < 3660
        server.step_clock(-7200)
        assert -3660 < ahead() < -3540
        server.restart()
        with server.connect() as another:
            row = another.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
            assert row is not None
            assert -3660 < row[0] - time.time() < -3540


def test_a_stepped_clock_leaves_monotonic_time_alone(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    clock.step(-3600)
    program = "import time; time.sleep(0.01); print(time.time(), time.monotonic())"
    told = subprocess.run(
        [*clock.python_prefix, sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    wall, monotonic = map(float, told.split())
    assert -3660 < wall - time.time() < -3540
    assert abs(monotonic - time.monotonic()) < 60


def test_nothing_is_left_of_a_server() -> None:
    with PostgresServer(small_disk="data", disk_mib=256) as server:
        assert server._process is not None
        pid, directory = server._process.pid, server.directory
        assert str(directory) in Path("/proc/mounts").read_text()
    assert not psutil.pid_exists(pid)
    assert not directory.exists()
    assert str(directory) not in Path("/proc/mounts").read_text()
