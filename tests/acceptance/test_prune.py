"""`pgworker prune` as people run it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.acceptance.test_cli import ROOT, command, environment, is_refused, objects, output, rows, run
from tests.sql.actors import DEADLINE, statuses
from tests.sql.history import day_of, enqueue_ago, finish_ago, partitions

Connect = Callable[[], psycopg.Connection[Any]]


def test_it_says_what_would_be_dropped_and_then_drops_it(dsn: str, connect: Connect) -> None:
    db = connect()
    finish_ago(db, enqueue_ago(db, 10, 3), 9)
    waits = enqueue_ago(db, 8, 2)
    there = partitions(db)
    names = [f"jobs_{day_of(db, days):%Y%m%d}" for days in (10, 8)]
    would = objects(output(run("prune", "--dry-run", "--json", dsn=dsn)))
    assert [(row["name"], row["jobs"], row["executions"], row["kept"], row["action"]) for row in would] == [
        (names[0], 3, 3, 0, "would drop"),
        (names[1], 2, 0, 2, "would drop"),
    ]
    assert would[0]["day"] == str(day_of(db, 10))
    assert partitions(db) == there
    printed = output(run("prune", dsn=dsn))
    assert printed.split()[:5] == ["PARTITION", "JOBS", "EXECUTIONS", "KEPT", "SIZE"]
    assert [(row[:4], row[-2:]) for row in rows(printed)] == [
        ([names[0], "3", "3", "0"], ["KiB", "dropped"]),
        ([names[1], "2", "0", "2"], ["KiB", "dropped"]),
    ]
    assert not set(names) & set(partitions(db))
    assert statuses(db, waits) == ["pending"] * 2
    again = run("prune", dsn=dsn)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "nothing has expired\n")


def test_older_than_decides_what_has_expired(dsn: str, connect: Connect) -> None:
    db = connect()
    finish_ago(db, enqueue_ago(db, 3), 2)
    assert run("prune", dsn=dsn).stderr == "nothing has expired\n"
    assert [row["name"] for row in objects(output(run("prune", "--older-than", "48h", "--json", dsn=dsn)))] == [
        f"jobs_{day_of(db, 3):%Y%m%d}"
    ]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--older-than", "6h"], 78, "--older-than must be at least 1 day, not 21600 s"),
        (["--older-than", "soon"], 64, "'soon' is no time: give seconds, or a number with s, m, h or d"),
        (["--older-than", "-7d"], 64, "'-7d' is no time"),
        (["--wait", "1w"], 64, "'1w' is no time"),
    ],
)
def test_an_age_that_can_not_be_is_refused_before_the_database_is_asked(
    words: list[str], code: int, sentence: str
) -> None:
    is_refused(sentence, code, "prune", *words, dsn="host=127.0.0.1 port=1")


def test_while_a_reader_is_in_the_way_it_says_so_and_tries_again(dsn: str, connect: Connect) -> None:
    db, reader = connect(), connect()
    finish_ago(db, enqueue_ago(db, 9), 8)
    with reader.transaction():
        reader.execute("select from pgworker.jobs limit 1")
        pruning = subprocess.Popen(
            command("prune"),
            cwd=ROOT,
            env=environment(PGWORKER_DSN=dsn),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert pruning.stderr is not None
        said = pruning.stderr.readline()
        assert "was in the way for longer than 50 ms; trying again for 60s" in said
    printed, more = pruning.communicate(timeout=DEADLINE)
    assert (pruning.returncode, more) == (0, "")
    assert rows(printed)[0][-1] == "dropped"


def test_what_could_not_be_dropped_is_an_exit_code_of_1(dsn: str, connect: Connect) -> None:
    db, reader = connect(), connect()
    enqueue_ago(db, 9)
    with reader.transaction():
        reader.execute("select from pgworker.jobs limit 1")
        ended = run("prune", "--wait", "0", dsn=dsn)
    assert ended.returncode == 1
    assert rows(ended.stdout)[0][-1] == "busy"
    assert ended.stderr.startswith("nothing was dropped: a transaction that reads or writes jobs was in the way")
    assert statuses(db, enqueue_ago(db, 9)) == ["pending"]
