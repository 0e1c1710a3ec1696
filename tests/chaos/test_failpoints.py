"""Failpoints: what can be written, where they are, what they do to a pool; and that pgworker has none of them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from pgworker.db.status import read_status
from pgworker.model.state import Status
from tests.chaos import failpoints
from tests.chaos.boundaries import POINTS
from tests.chaos.failpoints import Failpoint, Misspelt, fired, parse, reached
from tests.chaos.launch import pool_command
from tests.process.jobs import quick
from tests.process.pool import APP, ROOT, Pool, eventually
from tests.sql.actors import leases
from tests.sql.invariants import STORED, offences

Connect = Callable[[], psycopg.Connection[TupleRow]]


@contextmanager
def launch(dsn: str, directory: Path, armed: str, app: str = APP, **settings: object) -> Iterator[Pool]:
    """A pool with failpoints; whatever is left of it is killed at the end."""
    given = {"workers": 2, "metrics_listen": None, "heartbeat_interval": 0.2, "lease_ttl": 2, **settings}
    environment = {**os.environ, failpoints.FAILPOINTS: armed, failpoints.DIRECTORY: str(directory)}
    log_file = directory / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            pool_command(dsn, app, given),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    pool = Pool(process, log_file)
    try:
        yield pool
    finally:
        pool.kill()
        print(pool.log())  # noqa: T201 - pytest shows it when the test fails


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
