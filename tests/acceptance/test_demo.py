"""`pgworker demo` from outside: what it claims is true, what is off makes it fail, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import pytest
from psycopg.rows import TupleRow

from pgworker.db import embedded

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # seconds for anything

PROMISES = 9
Seen = TypeVar("Seen")


def start_demo(*arguments: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """The demo in a session of its own, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgworker", "demo", "-w", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )


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


def test_the_demo_succeeds_silently_on_stderr_in_80_columns_and_its_database_tells_the_same(directory: Path) -> None:
    demo = start_demo(f"--embedded={directory}")
    said, complained = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, complained) == (0, ""), said
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


def test_ctrl_c_in_the_middle_ends_everything_quietly_with_130_and_removes_the_directory(directory: Path) -> None:
    demo = start_demo(environment={"TMPDIR": str(directory)})
    eventually(lambda: any("pool is ready" in log.read_text() for log in directory.glob("*/pool.log")), demo)
    processes = psutil.Process(demo.pid).children(recursive=True)
    assert len(processes) > 4
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.communicate(timeout=DEADLINE) == ("", "")
    assert demo.returncode == 130
    assert psutil.wait_procs(processes, timeout=5)[1] == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--keep",)])
def test_without_a_postgresql_to_run_it_says_so_and_ends_with_78(tmp_path: Path, options: tuple[str, ...]) -> None:
    demo = start_demo(*options, environment={"TMPDIR": str(tmp_path), "PGWORKER_PG_BINDIR": "/nonexistent"})
    said, complained = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, said) == (78, "")
    assert "there is no postgres in /nonexistent" in complained
    assert "Traceback" not in complained
    assert list(tmp_path.iterdir()) == []
