"""Long commands say on a terminal that they go on, and nothing of the sort in a pipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.process.terminal import Terminal, opened
from tests.sql.actors import Connect
from tests.sql.history import enqueue_ago

ROOT = Path(__file__).parents[2]
PGWORKER = [sys.executable, "-m", "pgworker"]


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    with opened() as open_one:
        yield open_one


def test_migrate_tells_of_each_migration_as_it_is_applied_and_that_it_waits(
    blank_dsn: str, open_terminal: Callable[..., Terminal]
) -> None:
    with psycopg.connect(blank_dsn) as somebody:
        somebody.execute("create schema pgworker")  # until this commits, nobody else can
        terminal = open_terminal([*PGWORKER, "migrate", "--dsn", blank_dsn])
        terminal.wait_for("applying migrations, 2 s")
        somebody.rollback()
    assert terminal.process.wait(30) == 0
    lines = [line for line in terminal.lines() if line]
    assert lines[0] == "applied 0001_spine"
    assert all(line.startswith("applied 00") for line in lines), lines


def test_prune_tells_that_it_goes_on(dsn: str, connect: Connect, open_terminal: Callable[..., Terminal]) -> None:
    enqueue_ago(connect(), 10)
    with connect() as somebody, somebody.transaction():
        somebody.execute("lock table pgworker.jobs in access exclusive mode")
        terminal = open_terminal([*PGWORKER, "prune", "--dry-run", "--dsn", dsn])
        terminal.wait_for("looking for what has expired, 1 s")
    assert terminal.process.wait(30) == 0
    assert "would drop" in terminal.wait_for("PARTITION")
    assert "looking" not in terminal.text()


def test_a_pipe_gets_results_only(blank_dsn: str) -> None:
    ran = subprocess.run(
        [*PGWORKER, "migrate", "--dsn", blank_dsn], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stderr == ""
    assert ran.stdout.startswith("applied 0001_spine\napplied 0002")
