"""The commands as people run them: processes of their own, on a real database."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgworker.cli.root import tell_failure
from pgworker.db import embedded
from pgworker.errors import DatabaseUnavailable, SchemaError
from pgworker.inspection.jobs import list_jobs
from pgworker.lifecycle.heartbeat import WorkerProcess, announce_tasks, beat_workers
from pgworker.lifecycle.progress import save_progress
from pgworker.lifecycle.settle import Next
from pgworker.model.progress import check_progress
from pgworker.model.state import Outcome, Status
from pgworker.sql.load import migrations, query
from tests.process.pool import eventually
from tests.sql.actors import DEADLINE, POOL, Worker, ask, enqueue

Connect = Callable[[], psycopg.Connection[Any]]
Finished = subprocess.CompletedProcess[str]

ROOT = Path(__file__).parents[2]
SECRET = "canary-geheim"
EVIL = "\x1b]0;owned\x07\x9b2J\u202e\r"
"""Sets the title, clears the screen, turns the text around and goes back to the first column."""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pgworker", *words]


def environment(**variables: str) -> dict[str, str]:
    """Nothing of ours but where programs are: no DSN, no PGPASSWORD, no COLUMNS."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **variables}


def run(*words: str, dsn: str | None = None, given: str | None = None, **variables: str) -> Finished:
    """Run `pgworker words...` to its end; `dsn` comes in by PGWORKER_DSN, `given` on standard input."""
    named = {} if dsn is None else {"PGWORKER_DSN": dsn}
    return subprocess.run(
        command(*words),
        cwd=ROOT,
        env=environment(**named, **variables),
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def output(finished: Finished) -> str:
    """What a command that went well printed; it has nothing to say on the side."""
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def refusal(finished: Finished, code: int) -> str:
    """The sentence of a command that ended with `code` for a reason that is the user's to mend."""
    assert finished.returncode == code, finished.stderr
    assert finished.stderr.startswith("pgworker: ")
    assert "Traceback" not in finished.stderr
    assert SECRET not in finished.stderr + finished.stdout
    return finished.stderr


def is_refused(sentence: str, code: int, *words: str, dsn: str | None = None, given: str | None = None) -> None:
    finished = run(*words, dsn=dsn, given=given)
    assert finished.stdout == ""
    assert sentence in refusal(finished, code)


def rows(text: str) -> list[list[str]]:
    """The words of each line of a table, without its titles."""
    return [line.split() for line in text.splitlines()[1:]]


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Starting and finding one's way


def test_help_names_every_command_and_imports_neither_psycopg_nor_rich() -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pgworker", "--help"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    named = re.findall(r"^  ([a-z][a-z-]+)  ", finished.stdout, re.MULTILINE)
    assert {"start", "demo", "migrate", "enqueue", "jobs", "dead-letters", "queues", "status"} <= set(named)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in finished.stderr.splitlines()}
    assert "click" in imported
    assert imported & {"psycopg", "rich", "msgspec"} == set()


def test_every_command_has_its_own_help_and_an_unknown_one_is_refused() -> None:
    assert "--in TIME" in output(run("enqueue", "--help"))
    is_refused("there is no command 'enqeue'; did you mean enqueue?", 64, "enqeue")
    is_refused("Try `pgworker jobs show --help`.", 64, "jobs", "show", "--nonsense")


def test_version_is_one_line() -> None:
    assert re.fullmatch(r"pgworker \S.*\n", output(run("--version")))


# What can be wrong with the database


def test_without_a_dsn_the_two_ways_out_are_named() -> None:
    finished = run("status")
    assert all(word in refusal(finished, 78) for word in ("--dsn", "PGWORKER_DSN", "--embedded", "`pgworker demo`"))


@pytest.mark.parametrize(
    ("dsn", "code", "sentence"),
    [
        (f"mysql://me:{SECRET}@host/db", 78, "is not a PostgreSQL DSN"),
        (f"postgresql://me:{SECRET}@127.0.0.1:1/db", 69, "Connection refused"),
        (f"postgresql://me:{SECRET}@127.0.0.1:port/db", 78, "The DSN can't be used"),
        (f"host=/nowhere password={SECRET}", 69, "Start PostgreSQL, or correct host and port in the DSN"),
        ("embedded:/nowhere", 69, "No server is running in /nowhere"),
    ],
)
def test_a_server_that_can_not_be_reached_is_told_in_a_sentence_without_the_password(
    dsn: str, code: int, sentence: str
) -> None:
    is_refused(sentence, code, "jobs", "list", dsn=dsn)


def test_a_missing_database_and_an_unmigrated_one_are_the_users_to_mend(blank_dsn: str) -> None:
    missing = make_conninfo(blank_dsn, dbname="nobody_made_it", password=SECRET)
    is_refused("Create it with `createdb`", 78, "enqueue", "t", dsn=missing)
    is_refused("Run `pgworker migrate`", 78, "enqueue", "t", dsn=blank_dsn)


def test_a_newer_schema_is_left_alone(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("insert into pgworker.schema_migrations values (9999, '9999_of_tomorrow', 'abc')")
    is_refused("Upgrade pgworker on this host", 78, "enqueue", "t", "--dsn", dsn)
    is_refused("9999_of_tomorrow", 78, "migrate", "--dsn", dsn)


def test_a_wrong_password_is_told_and_not_printed(server: embedded.Server, dsn: str) -> None:
    database = str(conninfo_to_dict(dsn)["dbname"])
    wrong = make_conninfo(dsn, user="cli_locked", password=f"{SECRET}-wrong")
    with locked_role(server, dsn, database, "cli_locked"):
        is_refused("password authentication failed", 78, "status", dsn=wrong)


@contextmanager
def locked_role(server: embedded.Server, dsn: str, database: str, role: str) -> Iterator[None]:
    """A role that needs a password to log in, for as long as this lasts."""
    rules = server.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create role {role} login password '{SECRET}'".encode())
        try:
            rules.write_text(f"local {database} {role} scram-sha-256\n{before}")
            connection.execute("select pg_reload_conf()")
            deadline = time.monotonic() + DEADLINE
            with suppress(psycopg.OperationalError):
                while time.monotonic() < deadline:  # until the server has read the new rules
                    psycopg.connect(make_conninfo(dsn, user=role, password="wrong")).close()
            yield
        finally:
            rules.write_text(before)
            connection.execute("select pg_reload_conf()")
            connection.execute(f"drop role {role}".encode())


def test_a_bug_is_said_as_such_with_its_traceback(dsn: str, connect: Connect) -> None:
    connect().execute("alter table pgworker.jobs rename column task to tusk")
    finished = run("jobs", "show", str(uuid4()), dsn=dsn)
    assert finished.returncode == 70
    assert "bug of pgworker" in finished.stderr.splitlines()[0]
    assert "Traceback (most recent call last):" in finished.stderr


# migrate


def test_migrate_says_what_it_applied_and_then_that_nothing_is_left(blank_dsn: str) -> None:
    names = [step.name for step in migrations()]
    assert output(run("migrate", dsn=blank_dsn)) == "".join(f"applied {name}\n" for name in names)
    assert output(run("migrate", dsn=blank_dsn)) == f"nothing to do: the schema is at {names[-1]}\n"


def test_what_migrate_prints_does_the_same_by_itself_and_needs_no_database(blank_dsn: str) -> None:
    script = output(run("migrate", "--print"))
    with psycopg.connect(blank_dsn, autocommit=True) as connection:
        connection.execute(re.sub(r"^\\set.*$", "", script, flags=re.MULTILINE).encode())
    assert output(run("migrate", dsn=blank_dsn)).startswith("nothing to do")


def test_embedded_names_the_private_server_of_a_directory(server: embedded.Server) -> None:
    named = f"embedded:{server.directory}"
    output(run("migrate", dsn=named))
    assert json.loads(output(run("status", "--json", "--dsn", named)))["schema"]["name"] == migrations()[-1].name


# enqueue


def test_enqueue_stores_what_its_options_say_and_prints_the_id(dsn: str, connect: Connect) -> None:
    words = "-q mail --priority 9 --max-attempts 3 --timeout none --org acme --run-at 2030-01-31T08:00:00+01:00"
    printed = output(run("enqueue", "send", '{"to": "ä", "n": 1e2}', *words.split(), dsn=dsn))
    columns = "id::text, queue, priority, max_attempts, timeout_ms, org_id, run_at, task, payload"
    due = datetime(2030, 1, 31, 7, tzinfo=timezone.utc)
    stored = ask(connect(), f"select {columns} from pgworker.jobs")
    assert stored == [(printed.strip(), "mail", 9, 3, None, "acme", due, "send", {"to": "ä", "n": 100})]


def test_enqueue_reads_a_long_payload_from_standard_input_and_counts_by_the_databases_clock(
    dsn: str, connect: Connect
) -> None:
    """A function of that name stands in for a server whose clock is wrong: our statements find it first."""
    db = connect()
    db.execute(
        "create function public.clock_timestamp() returns timestamptz language sql as"
        " $$ select pg_catalog.clock_timestamp() + interval '2 years' $$"
    )
    db.execute(f"alter database {db.info.dbname} set search_path = public, pg_catalog")
    output(run("enqueue", "t", "-", "--in", "3600", dsn=dsn, given=json.dumps({"text": "x" * 500_000})))
    ahead, length = ask(
        db, "select run_at - now(), length(payload->>'text') from pgworker.jobs where timeout_ms = 1800000"
    )[0]
    assert timedelta(days=730) < ahead < timedelta(days=732)
    assert length == 500_000


def test_times_of_a_job_are_written_as_everywhere(dsn: str, connect: Connect) -> None:
    output(run("enqueue", "t", "--in", "2h", "--timeout", "5m", dsn=dsn))
    wait, timeout = ask(connect(), "select run_at - created_at, timeout_ms from pgworker.jobs")[0]
    assert timedelta(minutes=119) < wait <= timedelta(hours=2)
    assert timeout == 300_000


def test_a_person_is_told_at_once_that_nobody_serves_a_job_and_a_program_gets_its_id_alone(
    dsn: str, connect: Connect
) -> None:
    connection = connect()
    worker = Worker(connection)
    announce_tasks(connection, 5, ["shop.greet"])
    beat_workers(connection, POOL, [WorkerProcess(worker.worker_id, 1, 0, 0, 5)])
    (job_id, told, advice) = on_a_terminal("enqueue", "shop.gret", dsn=dsn).splitlines()
    assert told.endswith(" serves the task shop.gret; did you mean shop.greet?")
    assert advice == f"Try: pgworker jobs cancel {job_id}  # if it was a mistake"
    assert "did you mean default?" in on_a_terminal("enqueue", "shop.greet", "-q", "defualt", "--in", "1h", dsn=dsn)
    assert len(on_a_terminal("enqueue", "shop.greet", dsn=dsn).splitlines()) == 1
    assert len(output(run("enqueue", "shop.gret", dsn=dsn)).splitlines()) == 1


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("the payload is not JSON: Expecting value: line 1 column 7", ["t", '{"a": nonsense}']),
        ("it has the character U+0000", ["t", '{"a": "\\u0000"}']),
        ("it has NaN", ["t", '{"a": NaN}']),
        ("must be a JSON object of named arguments, not an array", ["t", "[1]"]),
        ("lone surrogate", ["t", '{"a": "\udcff"}']),
        ("can't name a task", ["t\x1b[2J"]),
        ("can't name a queue", ["t", "-q", "a b"]),
        ("priority must be a whole number from 0 to 9", ["t", "--priority", "10"]),
        ("timeout must be at least a millisecond", ["t", "--timeout", "0"]),
        ("'soon' is no time: give seconds, or a number with s, m, h or d", ["t", "--timeout", "soon"]),
        ("'nan' is no time", ["t", "--in", "nan"]),
        ("--in must be between 0 seconds and 100 years", ["t", "--in", "40000d"]),
        ('such as \'{"name": "Ada"}\'', ["t", "name=Ada"]),
        ("lacks its offset to UTC", ["t", "--run-at", "2030-01-31T08:00:00"]),
        ("exclude each other", ["t", "--in", "1", "--run-at", "2030-01-31T08:00:00Z"]),
    ],
)
def test_a_job_that_must_not_be_enqueued_is_refused_before_the_database_is_asked(
    sentence: str, words: list[str]
) -> None:
    is_refused(sentence, 64, "enqueue", *words)


@pytest.mark.parametrize(
    ("sentence", "payload"),
    [
        ("nested deeper than 64 levels", '{"a": ' + "[" * 100 + "]" * 100 + "}"),
        ("nested too deep", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        ("more than the 1048576 bytes that are allowed", json.dumps({"a": "x" * (1 << 20)})),
        ("more than 16777216 bytes", " " * (17 << 20)),
        ("the payload is not JSON", ""),
    ],
    ids=["deep", "deeper", "large", "larger", "empty"],
)
def test_a_payload_too_deep_or_too_large_is_refused(sentence: str, payload: str) -> None:
    is_refused(sentence, 64, "enqueue", "t", "-", given=payload)


# jobs


def test_jobs_list_shows_the_newest_first_and_filters_by_queue_task_org_and_status(dsn: str, connect: Connect) -> None:
    connection = connect()
    worker = Worker(connection)
    enqueue(connection, 2, org_id="acme")
    failing = worker.claim()
    worker.settle(failing.settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60, ends=False))
    worker.settle(failing.settlement(2, 2, outcome=Outcome.FAILED, then=Next.BURY))
    done, running = enqueue(connection, 2, org_id="acme")
    worker.settle(worker.claim(1).settlement())
    worker.claim(1)
    pending = enqueue(connection, queue="mail", task="send", org_id="acme")
    scheduled = enqueue(connection, run_at=datetime.now(timezone.utc) + timedelta(hours=1), org_id="acme")
    expected = [
        (scheduled[0], "scheduled"),
        (pending[0], "pending"),
        (running, "running"),
        (done, "succeeded"),
        (failing.ids[1], "dead_letter"),
        (failing.ids[0], "failed"),
    ]

    shown = [[str(job_id), status] for job_id, status in expected]
    assert [row[:2] for row in rows(output(run("jobs", "list", dsn=dsn)))] == shown
    some = objects(output(run("jobs", "list", "--json", "--limit", "3", "--task", "t", dsn=dsn)))
    assert [[job["id"], job["status"]] for job in some] == [shown[0], shown[2], shown[3]]
    either = output(run("jobs", "list", "--status", "failed", "--status", "running", "-q", "default", dsn=dsn))
    assert [row[:2] for row in rows(either)] == [shown[2], shown[5]]
    for job_id, status in expected:
        assert [job.id for job in list_jobs(connection, statuses=[Status(status)])] == [job_id]
        assert list_jobs(connection, statuses=[Status(status)], queue="none") == []
        assert list_jobs(connection, statuses=[Status(status)], task="none") == []
        assert list_jobs(connection, statuses=[Status(status)], org_id="none") == []
        assert [job.id for job in list_jobs(connection, statuses=[Status(status)], org_id="acme")] == [job_id]
    assert [row[:2] for row in rows(output(run("jobs", "list", "--org", "acme", dsn=dsn)))] == shown
    nothing = run("jobs", "list", "--status", "LOST", "--org", "acme", dsn=dsn)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "no such jobs\n")


def test_a_table_fits_into_columns_and_a_pipe_that_is_not_utf_8(dsn: str, connect: Connect) -> None:
    (job_id,) = enqueue(connect(), task="shop.invoices." + "x" * 200 + ".send", queue="q" * 128)
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "80"}
    titles, line = output(run("jobs", "list", dsn=dsn, **ascii_only)).splitlines()
    assert titles.split() == ["ID", "STATUS", "QUEUE", "TASK", "AGE"]
    assert len(line.replace("\\u2026", "…")) <= 80
    assert line.startswith(str(job_id))
    assert re.search(r" shop\S*\\u2026\S*send ", line)


def test_nothing_is_cut_in_a_pipe(dsn: str, connect: Connect) -> None:
    task, queue = "shop.invoices." + "x" * 200 + ".send", "q" * 128
    (job_id,) = enqueue(connect(), task=task, queue=queue)
    assert rows(output(run("jobs", "list", dsn=dsn)))[0][:4] == [str(job_id), "pending", queue, task]


def test_jobs_show_says_where_a_job_runs_and_how_earlier_executions_ended(dsn: str, connect: Connect) -> None:
    connection = connect()
    worker = Worker(connection)
    (job_id,) = enqueue(connection, payload='{"price": 12345678901234567890.12}', org_id="acme", max_attempts=5)
    beat_workers(connection, POOL, [WorkerProcess(worker.worker_id, 4711, 3, 0)])
    error = json.dumps({"type": "ValueError", "message": "no such user", "traceback": "  File x\nValueError: no"})
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.REQUEUE, error=error))
    worker.claim()

    page = output(run("jobs", "show", str(job_id), dsn=dsn))
    assert "status      running\n" in page
    assert re.search(r"claimed +\S+ ago by worker 3 on host host \(pid 4711\), as execution 2\n", page)
    assert "failures    1 of 5 attempts\n" in page
    assert re.search(r"execution 1: failed after 0ms, \S+ ago, worker 3 on host host \(pid 4711\)\n", page)
    assert "    ValueError: no such user\n" in page
    assert page.endswith("stack of execution 1:\n      File x\n    ValueError: no\n")

    said = output(run("jobs", "show", str(job_id).upper(), "--json", dsn=dsn))
    assert '"payload":{"price": 12345678901234567890.12}' in said, "every digit survives"
    shown = json.loads(said)
    assert (shown["status"], shown["org_id"], shown["claim"]["pid"]) == ("running", "acme", 4711)
    assert [ended["error"]["message"] for ended in shown["executions"]] == ["no such user"]


DUMP = """\
Thread 0x01 (most recent call first):
  File "/opt/site-packages/pgworker/worker/clerk.py", line 273 in _sleep
  File "/opt/lib/threading.py", line 982 in run

Current thread 0x02 (most recent call first):
  File "/srv/pgworker/app/shop.py", line 12 in forever
  File "/opt/site-packages/pgworker/app/task.py", line 259 in <lambda>
  File "/opt/site-packages/pgworker/worker/main.py", line 101 in run_worker
  File "/opt/site-packages/click/core.py", line 911 in invoke

Extension modules: psutil"""


@pytest.mark.parametrize("words", [("jobs", "show"), ("dead-letters", "show")])
def test_the_stack_of_a_worker_ends_at_its_handler(dsn: str, connect: Connect, words: tuple[str, ...]) -> None:
    connection = connect()
    worker = Worker(connection)
    (job_id,) = enqueue(connection)
    error = json.dumps({"type": "pgworker.timed_out", "message": "its time was up", "traceback": DUMP})
    worker.settle(worker.claim().settlement(outcome=Outcome.TIMED_OUT, then=Next.BURY, error=error))
    page = output(run(*words, str(job_id), dsn=dsn))
    assert [line.strip() for line in page.partition("stack of execution 1:\n")[2].splitlines()[:9]] == [
        "Thread 0x01 (most recent call first):",
        'File "/opt/site-packages/pgworker/worker/clerk.py", line 273 in _sleep',
        'File "/opt/lib/threading.py", line 982 in run',
        "",
        "Current thread 0x02 (most recent call first):",
        'File "/srv/pgworker/app/shop.py", line 12 in forever',
        "… 3 frames of pgworker (--json has them)",
        "",
        "Extension modules: psutil",
    ]
    assert "click/core.py" in output(run(*words, str(job_id), "--json", dsn=dsn))


@pytest.mark.parametrize("words", [("jobs", "show"), ("dead-letters", "show")])
def test_of_a_long_payload_the_page_has_the_beginning_and_json_all(
    dsn: str, connect: Connect, words: tuple[str, ...]
) -> None:
    payload = {"text": "x" * 900_000}
    (job_id,) = bury(connect(), 1, payload=json.dumps(payload))
    page = output(run(*words, job_id, dsn=dsn))
    assert len(page) < 4000
    assert f"{len(json.dumps(payload)) - 2000} characters more: --json" in page
    assert json.loads(output(run(*words, job_id, "--json", dsn=dsn)))["payload"] == payload


def test_jobs_show_says_how_far_a_job_is(dsn: str, connect: Connect) -> None:
    connection = connect()
    worker = Worker(connection)
    (job_id,) = enqueue(connection)
    assert json.loads(output(run("jobs", "show", str(job_id), "--json", dsn=dsn)))["progress"] is None
    held = worker.claim()
    said = check_progress(job_id, 0.425, f"page 7 {EVIL}", {"page": 7, "ü": 2**60})
    save_progress(connection, held.lease_id, {1: said})
    page = output(run("jobs", "show", str(job_id), dsn=dsn))
    line = re.search(r"^progress +42%: page 7 (.+) \(execution 1, \S+ ago\)$", page, re.MULTILINE)
    assert line is not None
    assert line[1].isprintable()
    (left,) = re.findall(r"^checkpoint +(.+)$", page, re.MULTILINE)
    assert json.loads(left) == {"page": 7, "ü": 2**60}
    shown = json.loads(output(run("jobs", "show", str(job_id), "--json", dsn=dsn)))["progress"]
    assert datetime.fromisoformat(shown.pop("updated_at")).tzinfo is not None
    assert shown == {
        "execution": 1,
        "fraction": 0.425,
        "message": f"page 7 {EVIL}",
        "checkpoint": {"page": 7, "ü": 2**60},
    }


def test_jobs_show_explains_a_crash_and_a_worker_that_is_gone(dsn: str, connect: Connect) -> None:
    connection = connect()
    worker = Worker(connection)
    (job_id,) = enqueue(connection)
    worker.claim()
    worker.die("killed by signal 9 (SIGKILL)")
    page = output(run("jobs", "show", str(job_id), dsn=dsn))
    assert "that worker has ended (killed by signal 9 (SIGKILL)), and the job is about to be reclaimed" in page


def test_a_dead_letter_is_shown_though_the_history_of_its_job_is_gone(dsn: str, connect: Connect) -> None:
    connection = connect()
    worker = Worker(connection)
    (job_id,) = enqueue(connection)
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY))
    connection.execute("truncate pgworker.jobs, pgworker.job_executions")
    assert "status      dead_letter\n" in output(run("jobs", "show", str(job_id), dsn=dsn))


def test_jobs_cancel_says_which_of_the_three_answers_it_is(dsn: str, connect: Connect) -> None:
    connection = connect()
    enqueue(connection)
    (running,) = Worker(connection).claim().ids
    (waiting,) = enqueue(connection)
    assert output(run("jobs", "cancel", str(waiting), dsn=dsn)).startswith("cancelled: it waited")
    assert output(run("jobs", "cancel", str(running), dsn=dsn)).startswith("requested: ")
    late = run("jobs", "cancel", str(waiting), dsn=dsn)
    assert (late.returncode, late.stdout.partition(":")[0], late.stderr) == (1, "too late", "")
    assert ask(connection, "select cancelled from pgworker.job_leases") == [[running]]


def test_several_jobs_are_cancelled_by_their_ids_and_the_unknown_ones_named(dsn: str, connect: Connect) -> None:
    connection = connect()
    first, second = enqueue(connection, 2)
    nobody = uuid4()
    finished = run("jobs", "cancel", str(first), str(nobody), str(second), str(first), dsn=dsn)
    assert finished.stdout.splitlines() == [
        f"{job} cancelled: it waited, and will never run" for job in (first, second)
    ]
    assert f"there is no job {nobody}" in refusal(finished, 64)
    late = run("jobs", "cancel", str(first), str(second), dsn=dsn)
    assert (late.returncode, late.stdout.count("too late: ")) == (1, 2)


def test_jobs_are_cancelled_by_what_they_have_in_common(dsn: str, connect: Connect) -> None:
    connection = connect()
    running = enqueue(connection, 2, queue="mail")
    Worker(connection).claim(queues=["mail"])
    enqueue(connection, 3, queue="mail")
    enqueue(connection, 4, task="u", org_id="acme")
    enqueue(connection, 1)
    assert output(run("jobs", "cancel", "-q", "mail", "--waiting-only", "--yes", dsn=dsn)) == (
        "cancelled 3, asked to stop 0\n"
    )
    assert output(run("jobs", "cancel", "-q", "mail", "-y", dsn=dsn)) == "cancelled 0, asked to stop 2\n"
    assert ask(connection, "select cancelled from pgworker.job_leases") == [running]
    assert output(run("jobs", "cancel", "--org", "acme", "--running-only", "-y", dsn=dsn)).startswith("cancelled 0,")
    assert output(run("jobs", "cancel", "--org", "acme", "--older-than", "1m", "-y", dsn=dsn)).startswith(
        "cancelled 0,"
    )
    assert output(run("jobs", "cancel", "--org", "acme", "--task", "u", "-y", dsn=dsn)).startswith("cancelled 4,")
    assert ask(connection, "select task from pgworker.job_queue") == ["t"]


def test_which_jobs_to_cancel_must_be_said_and_meant(dsn: str, connect: Connect) -> None:
    enqueue(connect())
    either = "name jobs either by their ids, or by -q, --task, --org or --older-than"
    is_refused(either, 64, "jobs", "cancel")
    is_refused(either, 64, "jobs", "cancel", "--yes")
    is_refused(either, 64, "jobs", "cancel", str(uuid4()), "-q", "mail")
    is_refused(either, 64, "jobs", "cancel", str(uuid4()), "--waiting-only")
    is_refused("jobs that neither wait nor run have ended", 64, "jobs", "cancel", "-q", "a", *BOTH)
    is_refused("this would mean every job there is", 64, "jobs", "cancel", "--older-than", "0")
    is_refused("'-1' is no time", 64, "jobs", "cancel", "--older-than", "-1")
    is_refused("older_than must be between 0 seconds and 100 years", 64, "jobs", "cancel", "--older-than", "40000d")
    is_refused("org_id must be a string of 1 to 256 characters", 64, "jobs", "cancel", "--org", "")
    is_refused("give --yes if it is meant", 64, "jobs", "cancel", "-q", "default", dsn=dsn)
    is_refused("give --yes if it is meant", 64, "queues", "purge", "default", dsn=dsn)
    assert ask(connect(), "select count(*) from pgworker.job_queue") == [1]


BOTH = ("--waiting-only", "--running-only")


def test_an_id_that_is_none_and_one_that_nobody_has_are_refused(dsn: str) -> None:
    is_refused("'01a2' is not a job id: give all 36 characters", 64, "jobs", "show", "01a2")
    is_refused("is not a job id", 64, "jobs", "cancel", "{01a2008e-ecf3-707e-94f7-954dbdb99882}")
    is_refused("there is no job 01a2008e-", 64, "jobs", "show", "01a2008e-ecf3-707e-94f7-954dbdb99882", dsn=dsn)
    is_refused("there is no job 01a2008e-", 64, "jobs", "cancel", "01a2008e-ecf3-707e-94f7-954dbdb99882", dsn=dsn)


# queues


def test_queues_are_paused_resumed_and_listed(dsn: str, connect: Connect) -> None:
    connection = connect()
    announce_tasks(connection, 5, ["t"])
    beat_workers(connection, POOL, [WorkerProcess(uuid4(), 1, 0, 0, 5)])
    enqueue(connection, 2)
    enqueue(connection, 3, task="typo")
    enqueue(connection, 1, queue="mail")
    assert output(run("queues", "pause", "default", "mail", dsn=dsn)) == "paused default\npaused mail\n"
    assert output(run("queues", "pause", "mail", "mail", dsn=dsn)) == "mail was paused already\n"
    assert output(run("queues", "resume", "mail", "other", dsn=dsn)) == "resumed mail\nother was not paused\n"

    table, told = output(run("queues", "list", dsn=dsn)).split("\n\n")
    assert re.fullmatch(r"QUEUE +WAITING +SCHEDULED +RUNNING +FAILED +OLDEST +UNSERVED", table.splitlines()[0])
    (default, mail) = rows(table)
    assert (default[:5], default[6:]) == (["default", "5", "0", "0", "0"], ["3", "paused"])
    assert (mail[:5], mail[6:]) == (["mail", "1", "0", "0", "0"], ["1"])
    assert told.splitlines() == [
        "queue default: 3 due of task typo, which no living worker serves; is it deployed, is its name right?",
        "queue mail: 1 due, and no living worker serves this queue; is its name right?",
    ]
    first, second = objects(output(run("queues", "list", "--json", dsn=dsn)))
    assert (first["queue"], first["paused"], first["waiting"], first["unserved"]) == ("default", True, 5, 3)
    assert (second["queue"], second["paused"], second["unserved_tasks"]) == ("mail", False, {"t": 1})


def test_without_any_worker_no_name_is_called_wrong(dsn: str, connect: Connect) -> None:
    enqueue(connect(), 2)
    table, told = output(run("queues", "list", dsn=dsn)).split("\n\n")
    assert rows(table)[0][6:] == ["2"]
    assert told == "no worker is alive: `pgworker start` runs some\n"
    assert output(run("status", dsn=dsn)).split("\n\n")[1] == "no workers: `pgworker start` runs some"


def test_a_queue_that_nobody_knows_is_paused_and_the_likely_mistake_told(dsn: str, connect: Connect) -> None:
    enqueue(connect(), queue="mail")
    for name, told in (("mial", "; did you mean mail?"), ("backups", "")):
        finished = run("queues", "pause", name, dsn=dsn)
        assert (finished.returncode, finished.stdout) == (0, f"paused {name}\n")
        assert finished.stderr == f"no job waits in queue {name} and no worker serves it{told}\n"
    finished = run("queues", "purge", "mial", "--yes", dsn=dsn)
    assert (finished.stdout, "did you mean mail?" in finished.stderr) == ("purged 0\n", True)


def test_queues_of_an_empty_database_are_none_and_a_name_that_can_not_be_is_refused(dsn: str) -> None:
    finished = run("queues", "list", dsn=dsn)
    assert (finished.returncode, finished.stdout, finished.stderr) == (
        0, "", "no jobs wait or run, and no queue is paused\n",
    )  # fmt: skip
    is_refused("'my queue' can't name a queue", 64, "queues", "pause", "mail", "my queue")
    is_refused("Missing argument 'NAME...'", 64, "queues", "resume")


def test_a_purge_says_how_many_it_is_or_would_be(dsn: str, connect: Connect) -> None:
    connection = connect()
    enqueue(connection, 3)
    enqueue(connection, 2, task="u", org_id="acme")
    Worker(connection).claim(1)
    assert output(run("queues", "purge", "default", "--dry-run", dsn=dsn)) == "would purge 4\n"
    assert output(run("queues", "purge", "default", "--org", "acme", "--task", "t", "-y", dsn=dsn)) == "purged 0\n"
    assert output(run("queues", "purge", "default", "--org", "acme", "--task", "u", "-y", dsn=dsn)) == "purged 2\n"
    assert output(run("queues", "purge", "default", "--yes", dsn=dsn)) == "purged 2\n"
    assert ask(connection, "select count(*) from pgworker.job_leases") == [1]


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 130, 5), ("\x03", 130, 5)])
def test_on_a_terminal_a_purge_asks_first(dsn: str, connect: Connect, answer: str, code: int, left: int) -> None:
    connection = connect()
    enqueue(connection, 5)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command("queues", "purge", "default")],
        cwd=ROOT,
        env=environment(PGWORKER_DSN=dsn, TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    read = b""
    while b"[y/N]" not in read:
        read += os.read(ours, 65_536)
    assert b"purge 5 waiting jobs of queue default [y/N]" in read
    while process.poll() is None:  # again: Python misses an interrupt that comes just before it begins to read
        os.write(ours, answer.encode())
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
    with suppress(OSError):  # EIO: the last one who had it open is gone
        while part := os.read(ours, 65_536):
            read += part
    os.close(ours)
    assert process.returncode == code
    assert (b"purged 5" in read) == (code == 0)
    assert ask(connection, "select count(*) from pgworker.job_queue") == [left]


def test_ctrl_c_in_the_middle_of_a_purge_says_how_far_it_came(dsn: str, connect: Connect) -> None:
    """The second batch waits for a row that somebody holds."""
    connection = connect()
    connection.execute(
        "insert into pgworker.job_queue select pgworker.uuid7(clock_timestamp()), clock_timestamp(), 1, n / 10001, 0, "
        "'default', 't', null from generate_series(1, 10050) as n"
    )
    with connection.transaction():
        connection.execute("select from pgworker.job_queue where priority = 1 for update")
        process = subprocess.Popen(
            command("queues", "purge", "default", "--yes"),
            cwd=ROOT,
            env=environment(PGWORKER_DSN=dsn),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        eventually(lambda: ask(connection, "select pid from pg_locks where not granted"), "somebody who waits")
        process.send_signal(signal.SIGINT)
        printed, complained = process.communicate(timeout=60)
    assert (process.returncode, printed, complained) == (130, b"purged 10000, then interrupted\n", b"\n")
    assert ask(connection, "select count(*) from pgworker.job_queue") == [50]


def test_ctrl_c_ends_with_130_while_a_connection_is_made() -> None:
    """The server accepts, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        host, port = server.getsockname()
        process = subprocess.Popen(
            command("status"),
            cwd=ROOT,
            env=environment(PGWORKER_DSN=f"host={host} port={port} user=u dbname=d connect_timeout=60"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with server.accept()[0]:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=DEADLINE) == (b"", b"\n")
    assert process.returncode == 130


def interrupted(error: Exception) -> Exception:
    """The error as it comes out of a driver that was interrupted."""
    with suppress(type(error)):
        try:
            raise KeyboardInterrupt
        finally:
            raise error
    return error


def test_an_outage_that_ctrl_c_has_caused_is_no_news_and_anything_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell_failure(interrupted(DatabaseUnavailable("another command is already in progress"))) == 130
    assert capsys.readouterr().err == "\n"
    assert tell_failure(DatabaseUnavailable("of its own")) == 69
    assert tell_failure(interrupted(SchemaError("its result can't be recorded"))) == 78
    assert "can't be recorded" in capsys.readouterr().err


# dead-letters


def bury(connection: psycopg.Connection[Any], jobs: int, **options: Any) -> list[str]:
    enqueue(connection, jobs, **options)
    worker = Worker(connection)
    held = worker.claim(jobs, tasks=["t", "u"])
    error = json.dumps({"type": "KeyError", "message": "'user'"})
    worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error))
    return [str(job_id) for job_id in held.ids]


def test_dead_letters_are_listed_and_requeued_and_the_unknown_ones_named(dsn: str, connect: Connect) -> None:
    connection = connect()
    first, second = bury(connection, 2, max_attempts=7)
    listed = rows(output(run("dead-letters", "list", dsn=dsn)))
    assert sorted(row[:3] for row in listed) == [[first, "t", "1/7"], [second, "t", "1/7"]]
    assert objects(output(run("dead-letters", "list", "--json", "--limit", "1", dsn=dsn)))[0]["error"] == {
        "type": "KeyError",
        "message": "'user'",
    }
    nobody = str(uuid4())
    finished = run("dead-letters", "requeue", first, nobody, dsn=dsn)
    assert finished.stdout == "requeued 1\n"
    assert f"not among the dead letters: {nobody}\n" in refusal(finished, 64)
    assert ask(connection, "select job_id::text, execution, failures from pgworker.job_queue") == [(first, 2, 0)]


def test_all_dead_letters_of_a_task_are_requeued_or_discarded_in_batches(dsn: str, connect: Connect) -> None:
    connection = connect()
    bury(connection, 1200)
    (other,) = bury(connection, 1, task="u")
    assert output(run("dead-letters", "discard", "--all", "--yes", "--task", "u", dsn=dsn)) == "discarded 1\n"
    assert ask(connection, "select pgworker.job_status(%s::uuid)", other) == ["cancelled"]
    assert output(run("dead-letters", "requeue", "--all", "-y", "-q", "default", dsn=dsn)) == "requeued 1200\n"
    assert ask(connection, "select count(*) from pgworker.job_queue") == [1200]


@pytest.mark.parametrize(("verb", "done"), [("requeue", "requeued"), ("discard", "discarded")])
def test_the_dead_letters_of_an_organisation_are_requeued_or_discarded_and_no_others(
    verb: str, done: str, dsn: str, connect: Connect
) -> None:
    connection = connect()
    (other,) = bury(connection, 1)
    bury(connection, 2, org_id="acme")
    assert output(run("dead-letters", verb, "--all", "--org", "acme", "--yes", dsn=dsn)) == f"{done} 2\n"
    assert ask(connection, "select job_id::text from pgworker.dead_letter_jobs") == [other]


def test_why_a_job_was_given_up_is_read_on_a_terminal_of_80_columns_and_by_grep(dsn: str, connect: Connect) -> None:
    connection = connect()
    task, why = "shop.monthly_report", "worker 0 (pid 12) was killed with its job: its time was up"
    enqueue(connection, task=task)
    worker = Worker(connection)
    held = worker.claim(tasks=[task])
    error = json.dumps({"type": "pgworker.timed_out", "message": why})
    worker.settle(held.settlement(outcome=Outcome.TIMED_OUT, then=Next.BURY, error=error))
    connection.execute("update pgworker.dead_letter_jobs set cause = %s", [why])  # as a reclaim does
    (line,) = output(run("dead-letters", "list", dsn=dsn)).splitlines()[1:]
    assert line.split()[:3] == [str(held.ids[0]), task, "1/25"]
    assert line.endswith(why)
    narrow = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("dead-letters", "list", dsn=dsn)).splitlines()
    assert [line.split()[:1] for line in narrow[:2]] == [["ID"], [str(held.ids[0])]]
    assert task in narrow[1]
    assert narrow[2:] == [f"    {why}"]
    wide = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("dead-letters", "list", dsn=dsn, columns=160)).splitlines()
    assert wide[1].rstrip().endswith(why)


def test_which_dead_letters_are_meant_must_be_said() -> None:
    is_refused("name the ids of dead letters, or give --all", 64, "dead-letters", "discard")
    is_refused("either ids, or --all", 64, "dead-letters", "discard", "--all", str(uuid4()))
    is_refused("either ids, or --all", 64, "dead-letters", "requeue", "--org", "acme", str(uuid4()))
    for verb in ("requeue", "discard"):
        is_refused("give --yes if it is meant", 64, "dead-letters", verb, "--all")
    is_refused("name the ids of dead letters, or give --all", 64, "dead-letters", "requeue", "-q", "mail")


# status


def test_status_counts_what_waits_runs_and_lives_and_stops_counting_in_time(dsn: str, connect: Connect) -> None:
    connection = connect()
    alive, silent, ended = (Worker(connection) for _ in range(3))
    beat_workers(connection, POOL, [WorkerProcess(worker.worker_id, 1, 0, 0) for worker in (alive, silent, ended)])
    ended.die()
    connection.execute(
        "update pgworker.worker_heartbeats set beat_at = beat_at - interval '1 hour' where worker_id = %s",
        [silent.worker_id],
    )
    bury(connection, 2)
    enqueue(connection, 3)
    alive.settle(alive.claim(2).settlement(1, 1, outcome=Outcome.FAILED, then=Next.REQUEUE, delay=60))
    enqueue(connection, queue="mail", run_at=datetime.now(timezone.utc) + timedelta(hours=1))
    connection.execute(
        "insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task) "
        "select gen_random_uuid(), clock_timestamp() - interval '3 hours', 1, 5, 0, 'mail', 't' "
        "from generate_series(1, 10050)"
    )
    connection.execute("insert into pgworker.queues (name, paused) values ('mail', true)")

    page = output(run("status", dsn=dsn))
    queues, unserved, hosts, rest = page.split("\n\n")
    assert [row[:5] for row in rows(queues)] == [["default", "1", "0", "1", "1"], ["mail", "10000+", "1", "0", "0+"]]
    assert rows(queues)[1][5:] == ["3h", "1000+", "paused"]
    assert unserved == "queue mail: 1000+ due, and no living worker serves this queue; is its name right?"
    assert [row[:3] for row in rows(hosts)] == [["host", "1", "1"]]
    assert rest == f"dead letters: 2\nschema: {migrations()[-1].name}\n"

    shown = json.loads(output(run("status", "--json", dsn=dsn)))
    mail = shown["queues"][1]
    assert (mail["waiting"], mail["more"], mail["paused"]) == (10_000, ["waiting", "failed", "unserved"], True)
    assert (shown["queues"][0]["unserved"], mail["unserved_tasks"]) == (0, {"t": 1000})
    assert (shown["dead_letters"], shown["dead_letters_is_more"], shown["hosts"][0]["alive"]) == (2, False, 1)


def test_status_reads_no_more_of_a_long_queue_than_it_counts(connect: Connect) -> None:
    connection = connect()
    connection.execute("analyze pgworker.job_queue")  # the statistics of an empty table
    connection.execute(
        "insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task) "
        "select pgworker.uuid7(clock_timestamp()), clock_timestamp() + (n %% 2) * interval '1 hour', 1, n %% 10, 0, "
        "'q' || n %% 3, 't' from generate_series(1, 60000) as n",
        [],
    )
    read = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'job_queue'"
    with connection.transaction():
        counts = connection.execute(query("count_queues"), {"cap": 1000, "total": 2000, "queues": 100}).fetchall()
        assert 3000 < ask(connection, read)[0] < 6000
    assert [(row[2], row[4], row[5], row[7]) for row in counts] == [(666, True, 666, True)] * 3


def test_status_of_an_empty_database_says_how_to_go_on(dsn: str) -> None:
    page = output(run("status", dsn=dsn))
    assert page.startswith("no jobs wait or run\n\nno workers: `pgworker start` runs some\n")


# Terminals and pipes


def on_a_terminal(*words: str, dsn: str, columns: int = 80) -> str:
    """What a command writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command(*words),
        cwd=ROOT,
        env=environment(PGWORKER_DSN=dsn, TERM="xterm-256color"),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    read = b""
    with suppress(OSError):  # EIO: the last one who had it open is gone
        while part := os.read(ours, 65_536):
            read += part
    os.close(ours)
    assert process.wait(60) == 0
    return read.decode().replace("\r\n", "\n")


def test_no_control_character_of_a_job_reaches_the_terminal(dsn: str, connect: Connect) -> None:
    connection = connect()
    worker = Worker(connection)
    enqueue(connection, payload=json.dumps({"a": EVIL}), org_id=EVIL)
    error = json.dumps({"type": "Error", "message": EVIL, "traceback": f"line\n{EVIL}"})
    (job_id,) = (held := worker.claim()).ids
    worker.settle(held.settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error, result=json.dumps(EVIL)))
    connection.execute("update pgworker.job_executions set cause = %s", [EVIL])
    pages = [
        on_a_terminal("jobs", "show", str(job_id), dsn=dsn),
        on_a_terminal("jobs", "show", "--json", str(job_id), dsn=dsn),
        on_a_terminal("dead-letters", "list", "--json", dsn=dsn),
        re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("dead-letters", "list", dsn=dsn)),  # but for rich's own colours
    ]
    assert all(page.replace("\n", "").isprintable() for page in pages)
    assert "\\x1b]0;owned\\x07" in pages[0]
    assert json.loads(pages[1])["payload"] == {"a": EVIL}


def test_a_table_on_a_terminal_is_styled_and_as_wide_as_the_terminal(dsn: str, connect: Connect) -> None:
    (job_id,) = enqueue(connect(), task="t" * 256)
    narrow = on_a_terminal("jobs", "list", dsn=dsn)
    assert "\x1b[" in narrow
    plain = re.sub(r"\x1b\[[0-9;]*m", "", narrow)
    assert max(len(line.rstrip()) for line in plain.splitlines()) == 80
    assert str(job_id) in plain
    wide = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal("jobs", "list", dsn=dsn, columns=160))
    assert max(len(line.rstrip()) for line in wide.splitlines()) == 160


@pytest.mark.parametrize("limit", ["1", "1000"], ids=["at the end", "in the middle"])
def test_a_reader_that_goes_away_is_no_news(dsn: str, connect: Connect, limit: str) -> None:
    enqueue(connect(), 300)
    process = subprocess.Popen(
        command("jobs", "list", "--json", "--limit", limit),
        cwd=ROOT,
        env=environment(PGWORKER_DSN=dsn),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1


def run_onto_a_full_disk(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    with Path("/dev/full").open("w") as full:
        return subprocess.run(
            command(*words),
            cwd=ROOT,
            env=environment(PGWORKER_DSN=dsn),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )


def test_a_job_that_is_stored_is_told_of_though_its_id_cannot_be_written(dsn: str, connect: Connect) -> None:
    process = run_onto_a_full_disk(dsn, "enqueue", "shop.greet")
    [(job_id,)] = connect().execute("select id from pgworker.jobs").fetchall()
    assert process.returncode == 1
    assert process.stderr.startswith(f"The job is stored all the same, as {job_id}.\n")


def test_a_full_disk_is_told_in_a_sentence(dsn: str) -> None:
    process = run_onto_a_full_disk(dsn, "status")
    assert (process.returncode, process.stderr) == (1, "pgworker: can't write: No space left on device\n")


def test_ctrl_c_ends_a_command_that_waits_without_a_traceback(dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection)
    with connection.transaction():
        connection.execute("select from pgworker.job_queue for update")
        process = subprocess.Popen(
            command("jobs", "cancel", str(job_id)),
            cwd=ROOT,
            env=environment(PGWORKER_DSN=dsn),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        eventually(lambda: ask(connection, "select pid from pg_locks where not granted"), "somebody who waits")
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=60)
    assert b"".join(printed).strip() == b""
    assert process.returncode == 130
