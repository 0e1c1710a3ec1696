"""`pgworker top` as people use it: on a terminal that they resize, in a pipe, and while the database is away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgworker.db import embedded
from pgworker.db.migrate import migrate
from tests.acceptance import tasks
from tests.process import pool
from tests.process.pool import Pool, eventually
from tests.process.terminal import ENTERS_SCREEN, LEAVES_SCREEN, Terminal, opened
from tests.sql.actors import enqueue

Connect = Callable[[], psycopg.Connection[Any]]
ROOT = Path(__file__).parents[2]
WITHOUT_RICH = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "rich" else find(name, *package)
sys.modules["rich"] = None
"""
COMMAND = [sys.executable, "-m", "pgworker", "top", "--interval", "0.5"]


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    with opened() as open_one:
        yield open_one


@pytest.fixture
def busy_pool(dsn: str, tmp_path: Path) -> Iterator[Pool]:
    """Two workers, one of which runs a job for as long as the test wants."""
    with pool.start(dsn, tmp_path / "pool.log", app="tests.acceptance.tasks:app", heartbeat_interval=0.1) as started:
        yield started


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_given_back(terminal: Terminal) -> None:
    """The screen, the cursor and the keys of before."""
    written = terminal.written
    assert written.count(ENTERS_SCREEN) == written.count(LEAVES_SCREEN) > 0
    assert written.rindex(LEAVES_SCREEN) > written.rindex(ENTERS_SCREEN)
    assert terminal.is_cursor_shown
    assert terminal.modes() == terminal.before
    assert b"Traceback" not in written


def test_a_running_job_a_failure_and_a_dead_letter_come_onto_the_screen(
    dsn: str, connect: Connect, busy_pool: Pool, tmp_path: Path, open_terminal: Callable[..., Terminal]
) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn], columns=160, lines=45)
    terminal.wait_for("pgworker top", "0 of 2 workers", "no jobs wait or run")
    connection = connect()
    job = tasks.wait.using(connection).enqueue(str(tmp_path / "gate"))
    tasks.fail.using(connection).enqueue("out of \\x1b[2J [red]stock")
    seen = terminal.wait_for("running 1 in 1 of 2 workers", str(job.id), "dead letters 1", "stock")
    assert re.search(rf"busy +{job.id} +wait +\d", seen)
    assert re.search(r"fail +failed +\S+ +ValueError: out of \\x1b\[2J \[red\]stock", seen)
    assert re.search(r"^default +0 .* 1 +0 ", seen, re.MULTILINE)
    terminal.press("q")
    assert terminal.process.wait(30) == 0
    assert_given_back(terminal)


@pytest.mark.parametrize(
    ("end", "code"), [("q", 0), ("\x03", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)]
)
def test_whatever_ends_it_gives_the_terminal_back(
    dsn: str, open_terminal: Callable[..., Terminal], end: str | int, code: int
) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn])
    terminal.wait_for("q quit")
    assert not terminal.is_cursor_shown
    if isinstance(end, str):
        terminal.press(end)
    else:
        terminal.process.send_signal(end)
    assert terminal.process.wait(30) == code
    assert_given_back(terminal)


def test_it_follows_a_resize_though_columns_and_lines_are_exported(
    dsn: str, open_terminal: Callable[..., Terminal]
) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn], COLUMNS="80", LINES="24")
    terminal.wait_for("q quit")
    terminal.resize(100, 40)
    eventually(lambda: terminal.lines()[39] == "q quit  p pause", terminal.text)
    assert re.fullmatch(r"pgworker top .* {2}\d\d:\d\d:\d\d UTC", terminal.lines()[0])
    assert len(terminal.lines()[0]) == 100
    terminal.resize(50, 10)
    eventually(lambda: terminal.lines()[9] == "q quit  p pause" and len(terminal.lines()[0]) == 50, terminal.text)


def test_p_holds_the_screen_and_lets_it_go(dsn: str, connect: Connect, open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn])
    terminal.wait_for("q quit")
    terminal.press("p")
    terminal.wait_for("PAUSED")
    enqueue(connect(), 3)
    looks = "select count(*) from pg_stat_activity where application_name = 'pgworker top' and query_start > %s"
    connection = connect()
    for _ in range(2):  # it looks on, and doesn't show
        [(now,)] = connection.execute("select clock_timestamp()").fetchall()
        eventually(lambda now=now: connection.execute(looks, [now]).fetchall() == [(1,)], "a look")  # type: ignore[misc]
    assert "waiting 0 " in terminal.text()
    terminal.press("p")
    terminal.wait_for("waiting 3", without="PAUSED")


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(dsn: str, open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn])
    terminal.wait_for("q quit")
    terminal.press("\x1a")
    _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    eventually(lambda: terminal.is_cursor_shown, "the cursor")
    assert_given_back(terminal)
    terminal.process.send_signal(signal.SIGCONT)
    eventually(lambda: not terminal.is_cursor_shown, "the screen again")
    terminal.press("q")
    assert terminal.process.wait(30) == 0
    assert_given_back(terminal)


def test_a_database_that_goes_away_leaves_its_last_data_with_their_age_and_comes_back(
    directory: Path, binaries: Path | None, open_terminal: Callable[..., Terminal]
) -> None:
    with embedded.start(directory, binaries=binaries):
        migrate(f"embedded:{directory}")
        terminal = open_terminal([*COMMAND, "--dsn", f"embedded:{directory}"], columns=160)
        terminal.wait_for("no jobs wait or run")
    terminal.wait_for("these data are", "old: ", f"No server is running in {directory}", "no jobs wait or run")
    with embedded.start(directory, binaries=binaries), psycopg.connect(embedded.dsn(directory)) as connection:
        enqueue(connection, 1)
        connection.commit()
        terminal.wait_for("waiting 1", without="these data are")
        terminal.press("q")
        assert terminal.process.wait(30) == 0
    assert_given_back(terminal)


def test_a_database_that_does_not_answer_holds_up_no_key(
    dsn: str, connect: Connect, open_terminal: Callable[..., Terminal]
) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn])
    terminal.wait_for("q quit")
    with connect() as connection, connection.transaction():
        connection.execute("lock table pgworker.dead_letter_jobs in access exclusive mode")
        terminal.wait_for("these data are")
        terminal.press("q")
        assert terminal.process.wait(30) == 0
    assert_given_back(terminal)


def test_an_admin_sees_all_of_it_and_an_enqueuer_is_told_what_he_lacks(login: Callable[..., str]) -> None:
    shown = run("--once", "--dsn", login("pgworker_admin"))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "no workers: `pgworker start` runs some" in shown.stdout
    refused = run("--once", "--dsn", login("pgworker_enqueuer"))
    assert (refused.returncode, refused.stdout) == (78, "")
    assert "pgworker_admin" in refused.stderr


def test_one_page_in_a_pipe_is_plain_text(dsn: str, connect: Connect) -> None:
    enqueue(connect(), 2)
    shown = run("--once", "--dsn", dsn)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\x1b" not in shown.stdout
    assert re.search(r"^default +2 ", shown.stdout, re.MULTILINE)
    assert max(map(len, shown.stdout.splitlines())) <= 160


def test_json_is_an_object_per_interval_until_ctrl_c(dsn: str, connect: Connect) -> None:
    enqueue(connect(), 2)
    told = json.loads(run("--once", "--json", "--dsn", dsn).stdout)
    assert [(queue["queue"], queue["waiting"]["number"]) for queue in told["queues"]] == [("default", 2)]
    endless = subprocess.Popen(
        [*COMMAND, "--json", "--dsn", dsn], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert endless.stdout is not None
    times = [json.loads(endless.stdout.readline())["at"] for _ in range(3)]
    assert times == sorted(set(times))
    endless.send_signal(signal.SIGINT)
    _, complained = endless.communicate(timeout=30)
    assert (endless.returncode, complained) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "there is no terminal to draw on: give --once"), (("--interval", "0"), "look every 0.5 s at most")],
)
def test_what_can_not_be_is_said(dsn: str, words: tuple[str, ...], said: str) -> None:
    refused = run(*words, "--dsn", dsn)
    assert (refused.returncode, refused.stdout) == (64, "")
    assert said in refused.stderr


def test_a_terminal_that_can_not_move_its_cursor_is_sent_to_once(
    dsn: str, open_terminal: Callable[..., Terminal]
) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn], TERM="dumb")
    assert terminal.process.wait(30) == 64
    terminal.wait_for("can't move its cursor: give --once")


def test_without_colours_there_are_none(dsn: str, open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([*COMMAND, "--dsn", dsn], NO_COLOR="1")
    terminal.wait_for("q quit")
    assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[;m]", terminal.written)


def test_without_rich_json_is_still_there_and_the_screen_says_what_to_install(dsn: str, tmp_path: Path) -> None:
    hidden = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'rich' else f(n, *a)"
    )
    (tmp_path / "sitecustomize.py").write_text(hidden + "\nimport sys; sys.modules['rich'] = None\n")
    refused = run("--once", "--dsn", dsn, PYTHONPATH=str(tmp_path))
    assert (refused.returncode, refused.stdout) == (78, "")
    assert "pip install 'pgworker[cli]'" in refused.stderr
    assert run("--once", "--json", "--dsn", dsn, PYTHONPATH=str(tmp_path)).returncode == 0
