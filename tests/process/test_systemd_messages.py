"""What a pool tells the service manager, received by a socket like its own. Real systemds: tests/deploy."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgworker.master.systemd import describe_drain, describe_pool
from tests.process.pool import eventually, start

Receive = Callable[[str], str]

HOLD_UP_MONITORS = """
    alter function pgworker.schema_version rename to real_schema_version;
    create function pgworker.schema_version() returns integer language plpgsql as $$
    begin
        if current_setting('application_name') = 'pgworker monitor' then
            perform pg_advisory_lock_shared(77);
        end if;
        return pgworker.real_schema_version();
    end $$
"""
"""A monitor that connects waits for whoever holds the lock; it asks for the version first."""


@pytest.fixture
def wait_for_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receive]:
    """Gives the next message that a pattern matches whole, of a pool that has yet to be started."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        def wait(pattern: str) -> str:
            return eventually(
                lambda: message if re.fullmatch(pattern, message := systemd.recv(4096).decode()) else "", pattern
            )

        yield wait


def test_a_pool_tells_that_it_is_ready_that_it_lives_and_for_how_long_it_may_drain(
    dsn: str, tmp_path: Path, wait_for_message: Receive
) -> None:
    with start(dsn, tmp_path / "pool.log", workers=2, drain_timeout=7) as pool:
        come = {"READY=1", "STATUS=2 of 2 workers ready, 0 jobs running"}  # in either order
        while come:
            come.discard(wait_for_message("|".join(come)))
        wait_for_message("WATCHDOG=1")
        wait_for_message("WATCHDOG=1")
        pool.send(signal.SIGTERM)
        said = wait_for_message(r"STOPPING=1\nEXTEND_TIMEOUT_USEC=\d+")
        assert int(said.rpartition("=")[2]) > 7e6
        assert pool.wait() == 0


@pytest.mark.parametrize("comes", [True, False], ids=["and comes", "and does not come, but not for ever"])
def test_ready_waits_for_the_connection_of_the_monitor(
    comes: bool,
    dsn: str,
    tmp_path: Path,
    wait_for_message: Receive,
    connect: Callable[[], psycopg.Connection[Any]],
) -> None:
    holding = connect()
    holding.execute(HOLD_UP_MONITORS)
    holding.execute("select pg_advisory_lock(77)")
    with start(dsn, tmp_path / "pool.log", workers=1) as pool:
        first = wait_for_message("READY=1|STATUS=1 of 1 worker ready.*")
        assert first == "STATUS=1 of 1 worker ready, 0 jobs running", "not READY=1, which would come before it"
        assert "the pool is ready" not in pool.log()
        if comes:
            holding.execute("select pg_advisory_unlock(77)")
        wait_for_message("READY=1")
        pool.wait_for_log("the pool is ready")
        if not comes:
            wait_for_message("STATUS=1 of 1 worker ready, 0 jobs running, the database can't be reached")
            holding.execute("select pg_advisory_unlock(77)")
            wait_for_message("STATUS=1 of 1 worker ready, 0 jobs running")
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0


def test_a_status_counts_and_names_only_what_is_remarkable() -> None:
    assert describe_pool(7, 8, 1, {"paused": True, "rolling": False}) == "7 of 8 workers ready, 1 job running, paused"
    assert describe_pool(1, 1, 0, {}) == "1 of 1 worker ready, 0 jobs running"


def test_the_status_of_a_drain_tells_what_is_left_and_for_how_long_at_most() -> None:
    assert describe_drain(2, 1, 12.4) == "draining: 2 workers left, 1 job running, for 12 s at most"
    assert describe_drain(1, 0, -3) == "draining: 1 worker left, 0 jobs running, for 0 s at most"
