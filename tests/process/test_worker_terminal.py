"""A pool at a terminal: its workers leave that alone, and the pool does not outlive it by mistake."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.process import terminal
from tests.process.pool import DEADLINE, ROOT, eventually
from tests.process.terminal import Terminal
from tests.sql.actors import ask, enqueue

Connect = Callable[[], psycopg.Connection[Any]]

APP = """
import sys
from pgworker import App

app = App()

@app.task
def stop_here() -> None:
    breakpoint()

@app.task
def listen() -> str:
    return sys.stdin.read()
"""


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    with terminal.opened() as open_one:
        yield open_one


def start_at(open_terminal: Callable[..., Terminal], dsn: str, directory: Path, **environment: str) -> Terminal:
    (directory / "corner.py").write_text(APP)
    words = ["start", "--app", "corner:app", "-w", "1", "--metrics-listen", "off"]
    command = [sys.executable, "-m", "pgworker", *words]
    return open_terminal(command, columns=200, lines=50, cwd=directory, PGWORKER_DSN=dsn, **environment)


def ended(connect: Connect, job: object) -> tuple[str, Any, Any]:
    """Outcome, error and result of the job's first execution, once there is one."""
    rows = eventually(
        lambda: ask(
            connect(),
            "select outcome, error, result from pgworker.job_executions where job_id = %s and execution = 1",
            job,
        ),
        "an end of the job",
    )
    outcome, error, result = rows[0]
    return outcome, error, result


def test_a_breakpoint_in_a_worker_fails_and_says_which_command_has_a_terminal(
    open_terminal: Callable[..., Terminal], dsn: str, connect: Connect, tmp_path: Path
) -> None:
    (job,) = enqueue(connect(), task="corner.stop_here", max_attempts=1)
    start_at(open_terminal, dsn, tmp_path)
    outcome, error, _ = ended(connect, job)
    assert outcome == "failed"
    assert error["message"] == (
        f"a worker has no terminal for breakpoint(): `pgworker jobs run {job}` runs the job in yours"
    )


def test_a_breakpoint_is_what_pythonbreakpoint_says(
    open_terminal: Callable[..., Terminal], dsn: str, connect: Connect, tmp_path: Path
) -> None:
    (job,) = enqueue(connect(), task="corner.stop_here", max_attempts=1)
    start_at(open_terminal, dsn, tmp_path, PYTHONBREAKPOINT="0")
    assert ended(connect, job)[0] == "succeeded"


def test_a_handler_that_reads_from_its_terminal_reads_nothing_and_goes_on(
    open_terminal: Callable[..., Terminal], dsn: str, connect: Connect, tmp_path: Path
) -> None:
    (job,) = enqueue(connect(), task="corner.listen", max_attempts=1)
    start_at(open_terminal, dsn, tmp_path)
    outcome, _, result = ended(connect, job)
    assert (outcome, result) == ("succeeded", "")


@contextmanager
def hung_up(dsn: str, directory: Path, *before: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A pool that was ready on a terminal which is closed by now, and its log."""
    (directory / "corner.py").write_text(APP)
    log = directory / "pool.log"
    ours, theirs = pty.openpty()
    words = ["start", "--app", "corner:app", "-w", "1", "--metrics-listen", "off", "--dsn", dsn]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "pgworker", *words],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=theirs,
            stdout=written,
            stderr=written,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    os.close(theirs)
    try:
        eventually(lambda: "the pool is ready" in log.read_text(), log.read_text)
        os.close(ours)
        yield process, log
    finally:
        process.kill()
        process.wait()


def test_a_pool_whose_terminal_is_closed_drains(dsn: str, tmp_path: Path) -> None:
    with hung_up(dsn, tmp_path) as (process, log):
        assert process.wait(DEADLINE) == 0
        assert "the terminal is gone: draining" in log.read_text()


def test_with_nohup_a_pool_outlives_its_terminal_and_hup_still_means_a_new_app(dsn: str, tmp_path: Path) -> None:
    with hung_up(dsn, tmp_path, "nohup") as (process, log):
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "1 workers run the app as it is now" in log.read_text(), log.read_text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
