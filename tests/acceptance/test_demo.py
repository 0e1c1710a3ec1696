"""`pgworker demo` from outside: what it claims is true, what is off makes it fail, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import pytest
from psycopg.rows import TupleRow

from pgworker.db import embedded
from tests.process.pool import eventually as wait_until
from tests.process.terminal import Terminal, opened

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # seconds for anything

DEMO = [sys.executable, "-m", "pgworker", "demo"]
PROMISES = 9
Seen = TypeVar("Seen")


def start_demo(*arguments: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """The demo in a session of its own, as a terminal would start it."""
    return subprocess.Popen(
        [*DEMO, "-w", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    with opened() as open_one:
        yield open_one


def eventually(look: Callable[[], Seen], demo: subprocess.Popen[str]) -> Seen:
    """What `look` returns once that is true, while the demo runs."""
    ends = time.monotonic() + DEADLINE
    while not (seen := look()):
        assert demo.poll() is None, f"the demo has ended: {demo.communicate()}"
        assert time.monotonic() < ends
        time.sleep(0.02)
    return seen


def answer(dsn: str, statement: str) -> list[TupleRow]:
    """What the server says; nothing as long as it or its tables aren't there."""
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        return []


def test_the_demo_succeeds_in_80_columns_and_its_database_tells_the_same(directory: Path) -> None:
    demo = start_demo(f"--embedded={directory}")
    said, told = demo.communicate(timeout=DEADLINE)
    assert demo.returncode == 0, said + told
    assert max(map(len, told.splitlines())) <= 160
    assert [
        re.sub(r"\d[\d.,]*(?<!,)", "N", line) for line in re.findall(r"^ +[\d.]+ s  +ok  (.*)$", told, re.MULTILINE)
    ] == [
        "a private PostgreSQL N runs, with pgworker's schema N",
        "N jobs are enqueued, one for each file, and N that go wrong",
        "a plain loop has read N files, in N s",
        "a pool has done N of N jobs, in N s",
        "it has drained: exit code N",
    ]
    for event in ("kill -9 ", "demo.hang timed out after 1 s: ", "demo.obey has stopped", "killed by SIGSEGV"):
        assert event in told
    assert max(map(len, said.splitlines())) <= 80 + len(str(directory))
    assert len(re.findall(r"^  ok  ", said, re.MULTILINE)) == PROMISES
    assert "Nothing lost, nothing twice, every death explained." in said
    with embedded.start(directory) as server, psycopg.connect(server.dsn, autocommit=True) as connection:
        counts = "select status, count(*) from pgworker.job_status group by 1"
        statuses: dict[str, int] = dict(connection.execute(counts).fetchall())
        assert set(statuses) == {"succeeded", "cancelled", "dead_letter"}
        assert (statuses["cancelled"], statuses["dead_letter"]) == (1, 3)
        assert f"{sum(statuses.values()):,} jobs in" in said
        assert connection.execute("select from pgworker.job_leases").fetchall() == []
        twice = "select job_id from pgworker.job_executions where outcome = 'succeeded' group by 1 having count(*) > 1"
        assert connection.execute(twice).fetchall() == []
        hashes = connection.execute(
            "select j.payload->>'path', coalesce(e.result->>'sha256', f.sha256) from pgworker.jobs j"
            " join pgworker.job_executions e on e.job_id = j.id and e.outcome = 'succeeded'"
            " left join public.demo_files f on f.job_id = j.id where j.payload ? 'path'"
        ).fetchall()
        deaths = connection.execute(
            "select j.task, e.cause from pgworker.job_executions e join pgworker.jobs j on j.id = e.job_id"
            " where e.outcome in ('crashed', 'timed_out') order by 1, 2"
        ).fetchall()
    assert len(hashes) > 300
    assert [path for path, found in hashes if hashlib.sha256(Path(path).read_bytes()).hexdigest() != found] == []
    assert [task for task, _ in deaths] == ["demo.crash", "demo.crash", "demo.hang", "demo.record"]
    assert [re.findall("SIGSEGV|SIGKILL|time was up", cause) for _, cause in deaths] == [
        ["SIGSEGV"],
        ["SIGSEGV"],
        ["time was up"],
        ["SIGKILL"],
    ]


def test_a_job_that_vanishes_and_a_row_that_is_written_twice_make_it_fail_with_a_line_each(directory: Path) -> None:
    demo = start_demo(f"--embedded={directory}")
    dsn = embedded.dsn(directory)
    lost = eventually(
        lambda: answer(
            dsn,
            "delete from pgworker.job_queue where job_id = (select job_id from pgworker.job_queue"
            " where task = 'demo.examine' order by job_id desc limit 1) returning job_id",
        ),
        demo,
    )
    eventually(lambda: answer(dsn, "insert into demo_files select * from demo_files limit 1 returning job_id"), demo)
    said, _ = demo.communicate(timeout=DEADLINE)
    assert demo.returncode == 1
    failed = re.findall(r"^  NO  (.*)$", said, re.MULTILINE)
    job = re.escape(f"demo.examine {lost[0][0]}")
    expected = [
        rf"every job is in its final state: expected 1 cancelled, 3 .*; found 1 LOST, 1 cancelled, 3 .* \({job}\)",
        rf"every job ran as often .*: expected 0 that did not; found 1 that did not \({job}: never ran\)",
        rf"each file's hash .*: expected 0 that differ, .*; found 1 that differ, .* \({job}\)",
        r"what a job wrote .* once: expected (\d+) rows of \1 jobs; found \d+ rows of \1 jobs \(demo\.record .*\)",
    ]
    assert len(failed) == len(expected)
    assert [line for line, pattern in zip(failed, expected, strict=True) if not re.fullmatch(pattern, line)] == []
    assert f"The pool's log: {directory / 'pool.log'}" in said
    assert "Nothing lost" not in said


def test_ctrl_c_in_the_middle_ends_everything_with_130_says_so_and_removes_the_directory(directory: Path) -> None:
    demo = start_demo(environment={"TMPDIR": str(directory)})
    eventually(lambda: any("pool is ready" in log.read_text() for log in directory.glob("*/pool.log")), demo)
    processes = psutil.Process(demo.pid).children(recursive=True)
    assert len(processes) > 4
    os.killpg(demo.pid, signal.SIGINT)
    said, told = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, said) == (130, "")
    assert re.fullmatch(
        r".*  ok  interrupted while running the jobs .*, [\d,]+ of [\d,]+ done: "
        r"pool and PostgreSQL have ended, its directory is removed",
        told.splitlines()[-1],
    )
    assert psutil.wait_procs(processes, timeout=5)[1] == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("moment", ["starting a private", "plain loop", "running the jobs", "draining"])
def test_ctrl_c_on_a_terminal_at_any_time_gives_it_back_and_leaves_nothing(
    directory: Path, open_terminal: Callable[..., Terminal], moment: str
) -> None:
    terminal = open_terminal([*DEMO, "-w", "2"], TMPDIR=str(directory))
    wait_until(lambda: moment.encode() in terminal.written, terminal.text, 100)
    assert not terminal.is_cursor_shown
    terminal.press("\x03")
    code = terminal.process.wait(DEADLINE)
    if moment == "draining" and code == 0:  # it was nearly there
        terminal.wait_for("Nothing lost")
    else:
        assert code == 130
        terminal.wait_for("interrupted while")
    assert_given_back(terminal)
    assert list(directory.iterdir()) == []
    wait_until(lambda: not processes_of(terminal), "nothing is left")


def test_a_terminal_shows_how_far_it_is(directory: Path, open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal([*DEMO, "-w", "2"], columns=80, TMPDIR=str(directory), NO_COLOR="1")
    terminal.wait_for("starting a private PostgreSQL", within=DEADLINE)
    terminal.wait_for("jobs are enqueued", "reading the standard library in a plain loop", within=DEADLINE)
    seen = terminal.wait_for("running the jobs in a pool that loses workers", "kill -9", within=DEADLINE)
    assert re.search(r"running the jobs .*[\d,]+/[\d,]+ \d:\d\d:\d\d$", seen, re.MULTILINE)
    assert terminal.process.wait(DEADLINE) == 0
    terminal.wait_for("Nothing lost, nothing twice", "Try next")
    assert_given_back(terminal)
    assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[;m]", terminal.written)


def test_a_terminal_that_can_not_move_its_cursor_gets_plain_lines(
    directory: Path, open_terminal: Callable[..., Terminal]
) -> None:
    terminal = open_terminal([*DEMO, "-w", "2"], TMPDIR=str(directory), TERM="dumb")
    assert terminal.process.wait(DEADLINE) == 0
    assert b"a plain loop has read" in terminal.written
    assert b"\x1b[?25" not in terminal.written


def test_json_tells_the_same_to_a_script(directory: Path) -> None:
    demo = start_demo("--json", environment={"TMPDIR": str(directory)})
    said, _ = demo.communicate(timeout=DEADLINE)
    assert demo.returncode == 0, said
    told = json.loads(said)
    assert told["holds"] is True
    assert [check["holds"] for check in told["checks"]] == [True] * PROMISES
    assert Counter(death["task"] for death in told["deaths"]) == {"demo.crash": 2, "demo.hang": 1, "demo.record": 1}
    assert told["jobs_per_second"] == pytest.approx(told["jobs"] / told["seconds"])
    assert told["kept"] is None


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_next_commands_do_what_they_say_as_they_stand_there(
    directory: Path, open_terminal: Callable[..., Terminal], is_kept: bool
) -> None:
    place = directory / "kept"
    demo = start_demo(*([f"--embedded={place}"] if is_kept else []), environment={"TMPDIR": str(directory)})
    said, _ = demo.communicate(timeout=DEADLINE)
    start, second, top = next_commands(said)
    pool = subprocess.Popen(
        ["bash", "-c", f"exec {start} --metrics-listen off"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with pool:
        try:
            assert pool.stderr is not None
            log = list(iter_until(pool.stderr, "the pool is ready"))
            assert "the pool is ready" in log[-1], log
            ran = subprocess.run(
                ["bash", "-c", second],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (ran.returncode, ran.stderr) == (0, "")
            assert re.fullmatch(r"[0-9a-f-]{36}\n", ran.stdout) or " in hang" in ran.stdout
            terminal = open_terminal(["bash", "-c", f"exec {top}"], cwd=directory, columns=120)
            terminal.wait_for("pgworker top", "workers on 1 host", "q quit")
            terminal.press("q")
            assert terminal.process.wait(DEADLINE) == 0
        finally:
            os.killpg(pool.pid, signal.SIGINT)
            pool.communicate(timeout=DEADLINE)
    assert pool.returncode == 0


def assert_given_back(terminal: Terminal) -> None:
    """The cursor and the keys of before, and no traceback."""
    assert terminal.is_cursor_shown
    assert terminal.modes() == terminal.before
    assert b"Traceback" not in terminal.written


def iter_until(lines: Iterable[str], words: str) -> Iterator[str]:
    """The lines up to the one that has these words in it."""
    for line in lines:
        yield line
        if words in line:
            return


def next_commands(said: str) -> list[str]:
    """What the last paragraph proposes, each as one would paste it."""
    lines = said.rpartition("\n\n")[2].splitlines()[1:]
    return [part.partition("\n")[2].strip() for part in re.split(r"^  # ", "\n".join(lines), flags=re.MULTILINE)[1:]]


def processes_of(terminal: Terminal) -> list[psutil.Process]:
    """Whatever lives in the session of the terminal."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == terminal.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("options", [(), ("--keep",)])
def test_without_a_postgresql_to_run_it_says_so_and_ends_with_78(tmp_path: Path, options: tuple[str, ...]) -> None:
    demo = start_demo(*options, environment={"TMPDIR": str(tmp_path), "PGWORKER_PG_BINDIR": "/nonexistent"})
    said, complained = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, said) == (78, "")
    assert "there is no postgres in /nonexistent" in complained.splitlines()[-1]
    assert "Traceback" not in complained
    assert list(tmp_path.iterdir()) == []
