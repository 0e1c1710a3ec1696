"""`pgworker bench` as people run it, with sizes that say nothing of speed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.test_cli import ROOT, command, environment, is_refused, objects, output, refusal, run
from tests.chaos.pooler import Pooler
from tests.process.pool import eventually
from tests.sql.actors import ask, enqueue

Connect = Callable[[], psycopg.Connection[Any]]

AT_WORK = "select true from pg_stat_activity where application_name = 'pgworker worker 0'"
PRODUCERS = "select count(*) from pg_stat_activity where application_name = 'pgworker bench producer'"
STOP_A_PRODUCER = PRODUCERS.replace("count(*)", "pg_terminate_backend(pid)") + " limit 1"
MAKES_ONE = "select true from pg_stat_activity where query ~ '^create database .pgworker_scratch_' and state = 'active'"
CONDITIONS = {"pgworker_version", "python_version", "server_version", "fsync", "synchronous_commit", "host_cpus"}
COSTS = {"wal_bytes_per_job", "transactions_per_job", "pool_cpu_us_per_job", "server_cpu_us_per_job"}


def measured(dsn: str, *words: str) -> dict[str, Any]:
    """What `pgworker bench words... --json` printed: one object."""
    [told] = objects(output(run("bench", *words, "--json", dsn=dsn)))
    assert told.keys() > CONDITIONS | {"bench"}
    return told


def test_drain_says_what_it_did_and_what_that_cost(dsn: str) -> None:
    told = measured(dsn, "drain", "--jobs", "300", "-w", "1", "--slots", "2")
    assert (told["jobs"], told["workers"], told["slots"], told["pools"]) == (300, 1, 2, 1)
    assert told["jobs_per_second"] == pytest.approx(300 / told["seconds"])
    assert told.keys() >= COSTS
    assert told["wal_bytes_per_job"] > 0
    assert told["server_cpu_us_per_job"] is not None


@pytest.mark.parametrize("words", [("drain", "--jobs", "300", "-w", "1"), ("latency", "--seconds", "1")])
def test_it_goes_through_a_pooler_that_keeps_no_session(dsn: str, directory: Path, words: tuple[str, ...]) -> None:
    with Pooler(dsn, directory, pool_size=5) as pooler:
        assert measured(pooler.dsn, *words, "--pooler")["pooler"] is True
        assert "prepared statement" not in pooler.log_file.read_text()


def test_the_median_of_several_runs_is_printed_beside_them_all(dsn: str) -> None:
    told = measured(dsn, "drain", "--jobs", "50", "-w", "1", "--runs", "3")
    assert told["jobs_per_second"] == sorted(told["jobs_per_second_runs"])[1]
    assert told["seconds"] == pytest.approx(50 / told["jobs_per_second"])
    assert (told["runs"], len(told["jobs_per_second_runs"])) == (3, 3)
    assert (told["jobs"], told["workers"]) == (50, 1)


def test_scale_has_a_case_for_each_number_of_workers_and_one_of_pools(dsn: str) -> None:
    told = measured(dsn, "scale", "--jobs", "50", "-w", "2", "--pools", "2")
    assert [(case["pools"], case["workers"]) for case in told["cases"]] == [(1, 1), (1, 2), (2, 1)]


def test_mixed_runs_each_kind_of_handler_with_all_slots(dsn: str) -> None:
    told = measured(dsn, "mixed", "--jobs", "100", "-w", "1", "--in-flight", "20")
    assert [(case["handlers"], case["drained_slots"]) for case in told["cases"]] == [("threads", 20), ("async", 20)]


def test_latency_counts_every_job_once(dsn: str) -> None:
    told = measured(dsn, "latency", "--rate", "50", "--seconds", "1")
    assert told["start_count"] == told["commit_count"] == 50
    assert sum(jobs for _, jobs in told["histogram_ms"]) == 50
    assert 0 < told["start_p50_ms"] <= told["start_p95_ms"] <= told["start_max_ms"]
    assert told["start_p99_ms"] is None, "of fifty it would be the longest"


def test_enqueue_measures_every_door_beside_the_bare_statement(dsn: str) -> None:
    cases = measured(dsn, "enqueue", "--jobs", "100", "--seconds", "0.2", "-c", "2")["cases"]
    doors = [(case["door"], case["connections"]) for case in cases]
    bulk = ["bare COPY into both tables", "task.enqueue_many", "app.enqueue_many"]
    assert doors[:3] == [(door, 1) for door in bulk]
    single = [
        "bare one-row INSERT",
        "SQL function",
        "enqueue, using(connection)",
        "enqueue, the App's own connection",
        "enqueue_async, one process",
    ]
    assert doors[3:13] == [(door, connections) for connections in (1, 2) for door in single]
    assert doors[13:] == [("enqueue, nobody is told", 2), ("enqueue, a pool is told", 2)]
    assert all(case["jobs"] > 0 for case in cases)
    assert [case["of_first"] is None for case in cases[:8]] == [True, False, False, True, False, False, False, False]


def test_backlog_measures_the_empty_system_first(dsn: str) -> None:
    words = ("--waiting", "0,300", "--scheduled", "200", "--finished", "100", "--claims", "5", "--batch", "10")
    cases = measured(dsn, "backlog", *words)["cases"]
    stored = [(case["waiting"], case["scheduled"], case["finished"]) for case in cases]
    assert stored == [(0, 0, 0), (0, 200, 100), (300, 200, 100)]
    assert [case["claim_count"] for case in cases] == [5, 5, 5]


def test_xmin_offers_the_same_load_in_each_phase(dsn: str) -> None:
    cases = measured(dsn, "xmin", "--minutes", "0.05", "--rate", "200", "--readers", "1")["cases"]
    assert [case["phase"] for case in cases] == ["before", "pinned, first half", "pinned, second half"]
    assert all(case["settled_per_second"] > 0 and case["claim_count"] for case in cases)


def test_recover_kills_workers_and_whole_hosts(dsn: str) -> None:
    cases = measured(dsn, "recover", "--kills", "2", "--hosts", "1", "--lease-ttl", "1")["cases"]
    assert [(case["killed"], case["rerun_count"]) for case in cases] == [("worker", 2), ("host", 1)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("drain", "--jobs", "20", "-w", "1"), {"jobs", "workers", "slots", "claimed", "wal"}),
        (("scale", "--jobs", "20", "-w", "1", "--pools", "1"), {"jobs", "slots", "pools"}),
        (("latency", "--seconds", "0.2"), {"rate", "achieved", "workers", "slots"}),
    ],
)
def test_people_get_the_conditions_and_a_table(dsn: str, words: tuple[str, ...], told: set[str]) -> None:
    lines = output(run("bench", *words, dsn=dsn)).splitlines()
    assert re.fullmatch(r"pgworker \S+, Python \S+, \d+ CPUs here", lines[0])
    assert re.match(r"PostgreSQL \S+: fsync o\w+, synchronous_commit \w+, ", lines[1])
    assert {line.split()[0] for line in lines[2:] if line} >= told


def test_other_jobs_of_the_server_are_left_alone_and_nothing_stays(dsn: str, connect: Connect) -> None:
    db = connect()
    [job] = enqueue(db, 1)
    before = databases(db)
    measured(dsn, "drain", "--jobs", "20", "-w", "1")
    assert databases(db) == before
    assert ask(db, "select job_id from pgworker.job_queue") == [job]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_it_the_pool_ends_too_and_the_database_is_dropped(
    dsn: str, connect: Connect, number: signal.Signals
) -> None:
    db = connect()
    before = databases(db)
    process = subprocess.Popen(
        command("bench", "recover", "--kills", "1000"),
        cwd=ROOT,
        env=environment(PGWORKER_DSN=dsn),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    eventually(lambda: len(databases(db)) > len(before), "a database of its own")
    eventually(lambda: bool(ask(db, AT_WORK)), "a pool at work")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    eventually(lambda: databases(db) == before, "the end of its database")


def test_an_interrupt_while_the_database_is_made_leaves_none(dsn: str, connect: Connect) -> None:
    """The server has it before we hear of that."""
    db = connect()
    before = databases(db)
    for _ in range(5):
        process = subprocess.Popen(
            command("bench", "drain"),
            cwd=ROOT,
            env=environment(PGWORKER_DSN=dsn),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        eventually(lambda: bool(ask(db, MAKES_ONE)) or len(databases(db)) > len(before), "a database that is made")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert databases(db) == before


def test_an_interrupt_while_a_server_of_its_own_is_made_leaves_nothing(directory: Path) -> None:
    process = subprocess.Popen(
        command("bench", "drain", "--embedded"),
        cwd=ROOT,
        env=environment(TMPDIR=str(directory)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    eventually(lambda: list(directory.glob("pgworker-*/data.new-*/*")), "what initdb writes")
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert (process.returncode, "Traceback" in told) == (130, False), told
    assert list(directory.iterdir()) == []


def test_a_producer_that_fails_ends_the_bench(dsn: str, connect: Connect) -> None:
    db = connect()
    process = subprocess.Popen(
        command("bench", "enqueue", "--jobs", "10", "--seconds", "60", "-c", "2"),
        cwd=ROOT,
        env=environment(PGWORKER_DSN=dsn),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: bool(ask(db, STOP_A_PRODUCER)), "a producer to stop")
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "terminating connection" in told or "server closed the connection" in told  # as soon as it hears of it
    assert "a producer has failed, see above" in told
    assert ask(db, PRODUCERS) == [0]


def test_it_brings_a_server_of_its_own(tmp_path: os.PathLike[str]) -> None:
    [told] = objects(output(run("bench", "drain", "--embedded", "--jobs", "20", "-w", "1", "--json")))
    assert told["jobs"] == 20


def test_what_cannot_be_measured_is_refused(dsn: str) -> None:
    is_refused("can't be divided among 3 workers", 78, "bench", "mixed", "-w", "3", "--in-flight", "4", dsn=dsn)
    is_refused("3 have", 64, "bench", "drain", "--runs", "2", dsn=dsn)
    is_refused("give a lower --rate", 1, "bench", "latency", "--rate", "50000", "--seconds", "0.02", dsn=dsn)
    is_refused("not both", 64, "bench", "drain", "--embedded", "--dsn", dsn)
    is_refused("is not a list of whole numbers", 64, "bench", "backlog", "--waiting", "0,-5", dsn=dsn)
    assert "no database is named" in refusal(run("bench", "drain"), 78)


def databases(db: psycopg.Connection[Any]) -> set[str]:
    """Those that the bench may have made: other tests have some, too."""
    return set(ask(db, "select datname from pg_database where datname ~ '^pgworker_scratch_'"))
