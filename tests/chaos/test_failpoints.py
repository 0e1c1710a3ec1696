"""Failpoints: what can be written, where they are, what they do to a pool; and that pgworker has none of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import TupleRow

from pgworker.db.status import read_status
from pgworker.model.state import Status
from tests.chaos import failpoints
from tests.chaos.boundaries import POINTS, REPLACED, UNREACHED, VERBS
from tests.chaos.boundary_client import Ledger
from tests.chaos.boundary_jobs import effect, effect_async, look_for_strangers
from tests.chaos.failpoints import Armed, Failpoint, Misspelt, fired, parse, reached
from tests.chaos.launch import pool_command
from tests.chaos.sweep import check, prepare
from tests.process.jobs import die, quick
from tests.process.pool import APP, ROOT, Pool, eventually, launched, start
from tests.sql.actors import ask, leases
from tests.sql.invariants import STORED, WITNESSES, offences

Connect = Callable[[], psycopg.Connection[TupleRow]]


@contextmanager
def launch(dsn: str, directory: Path, armed: str, app: str = APP, **settings: object) -> Iterator[Pool]:
    """A pool with failpoints; whatever is left of it is killed at the end."""
    given = {"workers": 2, "metrics_listen": None, "heartbeat_interval": 0.2, "lease_ttl": 2, **settings}
    environment = {**os.environ, failpoints.FAILPOINTS: armed, failpoints.DIRECTORY: str(directory)}
    log_file = directory / "log"
    try:
        with launched(pool_command(dsn, app, given), log_file, environment) as pool:
            yield pool
    finally:
        print(log_file.read_text(errors="replace"))  # noqa: T201 - pytest shows it when the test fails


def run_one(connection: psycopg.Connection[TupleRow], directory: Path, name: str) -> None:
    job = quick.using(connection).enqueue(str(directory), name)
    eventually(lambda: read_status(connection, job.id) is Status.SUCCEEDED, f"{name} succeeds")


def test_what_is_written_is_read_back() -> None:
    text = "settle_jobs.sent=kill@p0.01;*.after=delay:0.5@n3,once;renew.commit_sent=cut@in=monitor,after=2"
    assert ";".join(map(str, parse(text))) == text
    assert parse(" handler.before = stop ".replace(" ", "") + "\n;\n") == (Failpoint("handler.before", "stop"),)


@pytest.mark.parametrize(
    "text", ["handler.before", "handler.before=explode", "x.after=kill@q3", "x.after=kill@in=queen"]
)
def test_what_is_misspelt_is_refused(text: str) -> None:
    with pytest.raises(Misspelt):
        parse(text)


def test_a_pool_dies_where_it_is_told_to_and_goes_on(dsn: str, tmp_path: Path, connect: Connect) -> None:
    connection = connect()
    with launch(dsn, tmp_path, "settle_jobs.sent=kill@n2;take_lease.after=kill@n1") as pool:
        for number in range(6):
            run_one(connection, tmp_path, f"job-{number}")
        assert {fault["point"] for fault in fired(tmp_path)} == {"settle_jobs.sent", "take_lease.after"}
        assert reached(tmp_path) <= POINTS.keys()
        pool.send(signal.SIGTERM)
        assert pool.wait() == 0
    assert offences(connection, STORED) == {}
    assert not leases(connection)


def test_a_new_monitor_hears_who_has_died_before_it_takes_back_what_they_held(
    dsn: str, tmp_path: Path, connect: Connect
) -> None:
    """However slow the master is after the fork: without the board nobody knows since when the job ran."""
    armed = "take_lease.after=kill@n1;fork_monitor.after=delay:2@n2"
    connection = connect()
    job = die.using(connection).enqueue(str(tmp_path), "dies", "kill")
    with launch(dsn, tmp_path, armed):
        eventually(lambda: read_status(connection, job.id) is Status.SUCCEEDED, "the second execution succeeds")
    assert {fault["point"] for fault in fired(tmp_path)} == {"take_lease.after", "fork_monitor.after"}
    found = ask(connection, "select outcome::text, started_at is null from pgworker.job_executions order by execution")
    assert found == [("crashed", False), ("succeeded", False)]


@pytest.mark.parametrize("task", [effect, effect_async])
def test_a_commit_whose_reply_confuses_the_driver_is_found(
    dsn: str, tmp_path: Path, connect: Connect, task: Any
) -> None:
    """A server that ends the connection between the reply to COMMIT and its end has committed all the same."""
    connection = connect()
    connection.execute(WITNESSES.encode())
    verb = "transaction" if task is effect else "transaction_async"
    with launch(dsn, tmp_path, f"{verb}.after_commit=confuse@once", "tests.chaos.boundary_jobs:app") as pool:
        job = task.using(connection).enqueue(str(tmp_path))
        pool.wait_for_log("the commit was found")
        assert read_status(connection, job.id) is Status.SUCCEEDED
        assert "job failed" not in pool.log()
    assert ask(connection, "select outcome::text from pgworker.job_executions") == ["succeeded"]
    assert ask(connection, "select count(*) from chaos.effect") == [1]


def test_pgworker_has_no_line_of_it() -> None:
    sources = [file for file in (ROOT / "pgworker").rglob("*") if file.suffix in (".py", ".sql")]
    assert len(sources) > 200
    assert [
        file for file in sources if re.search(r"fail_?point|chaos|(from|import) tests", file.read_text(), re.IGNORECASE)
    ] == []


@pytest.mark.parametrize("armed", [False, True])
def test_only_a_pool_that_is_launched_for_it_has_failpoints(
    dsn: str, tmp_path: Path, connect: Connect, armed: bool
) -> None:
    """A worker looks at itself: whose code its functions and its driver have, and which modules it has."""
    app = "tests.chaos.boundary_jobs:app"
    connection = connect()
    job = look_for_strangers.using(connection).enqueue(list(REPLACED))
    with launch(dsn, tmp_path, "", app) if armed else start(dsn, tmp_path / "log", app=app):
        eventually(lambda: read_status(connection, job.id) is Status.SUCCEEDED, "it has looked")
    [found] = ask(connection, "select result from pgworker.job_executions where job_id = %s", job.id)
    assert sorted(found["patched"]) == (sorted(REPLACED) if armed else [])
    assert ("tests.chaos.failpoints" in found["modules"]) is armed


def test_every_point_is_made_of_a_statement_that_is_there_and_what_is_not_reached_is_one() -> None:
    names = {point.rpartition(".")[0] for point in POINTS}
    assert {file.stem for file in (ROOT / "pgworker/sql/queries").glob("*.sql")} <= names
    assert UNREACHED.keys() <= names
    assert VERBS.keys() <= names


def test_what_is_to_happen_once_or_the_nth_time_happens_so_in_all_processes_together(tmp_path: Path) -> None:
    armed = Armed(parse("a.before=delay:0@n3;b.*=delay:0@once"), tmp_path, "7")
    pids = []
    for _ in range(5):
        if (pid := os.fork()) == 0:
            armed.reach("a.before")
            armed.reach("b.before")
            armed.reach("b.after")
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 5
    assert sorted(fault["point"].partition(".")[0] for fault in fired(tmp_path)) == ["a", "b"]
    assert reached(tmp_path) == {"a.before", "b.before", "b.after"}


def test_the_same_seed_makes_the_same_things_happen(tmp_path: Path) -> None:
    def happened(seed: str, name: str) -> list[int]:
        armed = Armed(parse("a.before=delay:0@p0.2"), tmp_path / name, seed)
        armed.directory.mkdir()
        seen = []
        for number in range(50):
            before = len(fired(armed.directory))
            armed.reach("a.before")
            seen += [number] * (len(fired(armed.directory)) - before)
        return seen

    assert happened("7", "first") == happened("7", "second") != []
    assert happened("8", "third") != happened("7", "fourth")


def test_a_file_takes_the_place_of_the_variable(tmp_path: Path) -> None:
    armed = Armed(parse("a.before=delay:0"), tmp_path, "7")
    (tmp_path / "failpoints").write_text("b.before=delay:0\n")
    armed.reach("a.before")
    armed.reach("b.before")
    assert [fault["point"] for fault in fired(tmp_path)] == ["b.before"]


@pytest.mark.parametrize("is_in_a_pipeline", [False, True])
def test_a_connection_that_is_cut_is_lost_and_one_that_raises_at_first_is_not(
    dsn: str, tmp_path: Path, is_in_a_pipeline: bool
) -> None:
    """In a process of its own: what is put around the driver stays there."""
    for action, is_lost in (("cut", True), ("raise", False)):
        told = subprocess.run(
            [sys.executable, "-c", _ENQUEUES, dsn, str(is_in_a_pipeline)],
            cwd=ROOT,
            env=os.environ
            | {failpoints.FAILPOINTS: f"enqueue_job.before={action}", failpoints.DIRECTORY: str(tmp_path / action)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.stdout.strip() == f"OperationalError {is_lost}", told.stderr


_ENQUEUES = """
import os, sys
from contextlib import nullcontext
import psycopg
from tests.chaos.boundaries import put_around_everything
from tests.chaos.failpoints import Armed
from tests.sql.actors import enqueue
put_around_everything(Armed.by_environment(os.environ).reach)
connection = psycopg.connect(sys.argv[1], autocommit=True)
try:
    with connection.pipeline() if sys.argv[2] == "True" else nullcontext():
        enqueue(connection)
except psycopg.Error as error:
    print(type(error).__name__, connection.broken)
"""


def test_a_round_finds_what_was_lost(dsn: str, tmp_path: Path, connect: Connect) -> None:
    """The checker is checked: each of these is a sentence of its answer."""
    connection = connect()
    prepare(connection, tmp_path)
    assert any("at the end nothing waits or runs" in said for said in check(connection, tmp_path))
    connection.execute("delete from pgworker.job_queue")
    lost = uuid4()
    Ledger(tmp_path).note("ACKED", lost)
    (tmp_path / "ledger").write_text(f"{lost} 1 77\n{lost} 1 78\n")
    found = "\n".join(check(connection, tmp_path))
    for offence in (
        "every job is in exactly one place",
        "an acknowledged enqueue is stored",
        "started twice",
        "started and has no row",
        "quick is LOST",
    ):
        assert offence in found
