"""`pgworker jobs retry | explain`, `workers` and `dead-letters show`, as people use them: on a real database."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pgworker.control.queues import pause_queues
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.heartbeat import Activity, PoolIdentity, RunningJob, WorkerProcess, beat_workers
from pgworker.lifecycle.settle import Next
from pgworker.model.state import Outcome, WorkerState
from tests.acceptance.test_cli import bury, is_refused, objects, on_a_terminal, output, refusal, run
from tests.sql.actors import Worker, ask, enqueue, statuses, waiting

Connect = Callable[[], psycopg.Connection[Any]]

TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)

# retry


def test_jobs_are_retried_by_their_ids_and_each_says_what_became_of_it(dsn: str, connect: Connect) -> None:
    connection = connect()
    (done,) = enqueue(connection)
    worker = Worker(connection)
    worker.settle(worker.claim().settlement())
    (dead,) = bury(connection, 1)
    (running,) = enqueue(connection)
    worker.claim()
    (cancelled,) = enqueue(connection)
    cancel_job(connection, cancelled)
    (scheduled,) = enqueue(connection, run_at=TOMORROW)
    (due,) = enqueue(connection)
    words = [str(job) for job in (scheduled, dead, due, running, done, cancelled, uuid4())]
    finished = run("jobs", "retry", *words, dsn=dsn)
    assert [line.split(":")[0].partition(" ")[2] for line in finished.stdout.splitlines()] == [
        "due now",
        "requeued",
        "waiting",
        "running",
        "succeeded",
        "cancelled",
    ]
    assert "there is no job" in refusal(finished, 64)
    assert [job for job, _, _ in waiting(connection)] == sorted([scheduled, due, UUID(dead)])
    assert ask(connection, "select bool_and(run_at <= clock_timestamp()) from pgworker.job_queue") == [True]
    late = run("jobs", "retry", str(done), dsn=dsn)
    assert (late.returncode, late.stderr) == (1, "")
    assert late.stdout.startswith("succeeded: refused")
    assert "pgworker enqueue" in late.stdout


def test_all_that_wait_for_their_retry_run_now_and_others_only_when_they_are_named(dsn: str, connect: Connect) -> None:
    connection = connect()
    enqueue(connection, 2)
    worker = Worker(connection)
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.REQUEUE, delay=3600))
    scheduled = enqueue(connection, 3, run_at=TOMORROW, org_id="acme")
    dead = bury(connection, 2)
    assert output(run("jobs", "retry", "--all", "-q", "mail", "-y", dsn=dsn)) == "due now 0, requeued 0\n"
    assert output(run("jobs", "retry", "--all", "-y", dsn=dsn)) == "due now 2, requeued 0\n"
    words = ("--status", "scheduled", "--status", "dead_letter")
    assert output(run("jobs", "retry", "--all", "--org", "acme", *words, "-y", dsn=dsn)) == "due now 3, requeued 0\n"
    assert output(run("jobs", "retry", "--all", "--task", "t", *words, "-y", dsn=dsn)) == "due now 0, requeued 2\n"
    assert statuses(connection, [*scheduled, *map(UUID, dead)]) == ["pending"] * 5


def test_which_jobs_to_retry_must_be_said_and_meant(dsn: str) -> None:
    is_refused("name jobs by their ids, or give --all", 64, "jobs", "retry", "-q", "mail")
    is_refused("name jobs by their ids, or give --all", 64, "jobs", "retry", "--all", str(uuid4()))
    is_refused("give either ids, or --all with", 64, "jobs", "retry", str(uuid4()), "-q", "mail")
    is_refused("'succeeded' is not one of", 64, "jobs", "retry", "--all", "--status", "succeeded")
    is_refused("give --yes if it is meant", 64, "jobs", "retry", "--all", dsn=dsn)


# explain


def test_explain_says_why_a_job_waits_and_what_helps_for_people_and_as_json(dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, queue="mail")
    pause_queues(connection, ["mail"])
    said = output(run("jobs", "explain", str(job_id), dsn=dsn)).splitlines()
    assert said[0].startswith("Its queue, mail, has been paused for ")
    assert said[1:] == ["Try: pgworker queues resume mail"]
    [told] = objects(output(run("jobs", "explain", "--json", str(job_id), dsn=dsn)))
    assert told == {
        "id": str(job_id),
        "status": "pending",
        "reason": "queue_paused",
        "explanation": told["explanation"],
        "command": "pgworker queues resume mail",
    }
    assert f"in short    {told['explanation'][:30]}" in output(run("jobs", "show", str(job_id), dsn=dsn))
    is_refused("there is no job", 64, "jobs", "explain", str(uuid4()), dsn=dsn)


# workers


def beaten(connection: psycopg.Connection[Any], worker_id: UUID, lease_id: UUID | None, *, host: str = "a") -> None:
    runs = () if lease_id is None else tuple(RunningJob(lease_id, place, place * 1_000_000) for place in (1, 2))
    activity = Activity(WorkerState.BUSY if runs else WorkerState.IDLE, runs, 7, 41 << 20, 12.5)
    pool = PoolIdentity(uuid4(), host, "boot", ("default",))
    beat_workers(connection, pool, [WorkerProcess(worker_id, 4_194_304, 3, 3_600_000_000, 0, activity)])


def test_workers_are_listed_with_what_they_run_within_80_columns(dsn: str, connect: Connect) -> None:
    connection = connect()
    nobody = run("workers", dsn=dsn)
    assert (nobody.returncode, nobody.stdout) == (0, "")
    assert nobody.stderr == "no worker is alive: `pgworker start` runs some\n"
    (first, second) = enqueue(connection, 2, task="shop.reports.monthly_statement_of_accounts")
    worker, silent = Worker(connection), uuid4()
    held = worker.claim(tasks=["shop.reports.monthly_statement_of_accounts"], slots=2)
    beaten(connection, worker.worker_id, held.lease_id, host="a-host-with-a-rather-long-name.example")
    beaten(connection, silent, None)
    connection.execute(
        "update pgworker.worker_heartbeats set beat_at = beat_at - interval '40 s' where worker_id = %s", [silent]
    )
    table = output(run("workers", dsn=dsn, COLUMNS="80")).splitlines()
    assert max(map(len, table)) <= 80
    assert table[0].split() == ["HOST", "WORKER", "PID", "STATE", "RUNS", "FOR", "MEM", "CPU", "UP", "BEAT"]
    quiet, busy = (line.split() for line in table[1:])
    assert quiet[:6] == ["a", "3", "4194304", "silent", "-", "-"]
    assert quiet[6:10] == ["41", "MiB", "12s", "60m"]
    assert (busy[1:4], busy[-5:-3]) == (["3", "4194304", "busy"], ["41", "MiB"])
    assert "+1" in table[2]
    told = objects(output(run("workers", "--json", dsn=dsn)))
    assert [one["is_silent"] for one in told] == [True, False]
    assert [ran["job_id"] for ran in told[1]["runs"]] == [str(second), str(first)]
    assert len(objects(output(run("workers", "--json", "--limit", "1", dsn=dsn)))) == 1


# dead-letters show, and the way on in a long list


def test_a_dead_letter_is_shown_with_its_stack_and_what_to_do_next(dsn: str, connect: Connect) -> None:
    connection = connect()
    (job_id,) = enqueue(connection, payload='{"n": 1}', org_id="acme")
    worker = Worker(connection)
    error = json.dumps({"type": "KeyError", "message": "'user'", "traceback": "Traceback\n  line 7"})
    worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY, error=error))
    connection.execute("truncate pgworker.jobs, pgworker.job_executions")
    page = output(run("dead-letters", "show", str(job_id), dsn=dsn))
    assert "error       KeyError: 'user'\n" in page
    assert 'payload     {"n": 1}\n' in page
    assert "stack of execution 1:\n    Traceback\n      line 7\n" in page
    assert f"pgworker dead-letters requeue {job_id}" in page
    [told] = objects(output(run("dead-letters", "show", "--json", str(job_id), dsn=dsn)))
    assert (told["job_id"], told["payload"], told["error"]["type"]) == (str(job_id), {"n": 1}, "KeyError")
    (waits,) = enqueue(connection)
    finished = run("dead-letters", "show", str(waits), dsn=dsn)
    assert f"job {waits} is no dead letter. No worker is alive" in refusal(finished, 64)
    is_refused("there is no job", 64, "dead-letters", "show", str(uuid4()), dsn=dsn)


@pytest.mark.parametrize("status", ["pending", "succeeded", "cancelled", "dead_letter", "running", None])
def test_a_long_list_goes_on_before_its_last_job(dsn: str, connect: Connect, status: str | None) -> None:
    connection = connect()
    ids = [str(job_id) for job_id in enqueue(connection, 5)]
    worker = Worker(connection)
    match status:
        case "succeeded":
            worker.settle(worker.claim().settlement())
        case "dead_letter":
            worker.settle(worker.claim().settlement(outcome=Outcome.FAILED, then=Next.BURY))
        case "cancelled":
            worker.settle(worker.claim().settlement(outcome=Outcome.CANCELLED))
        case "running":
            worker.claim()
    words = ["jobs", "list", "--json", "--limit", "2", *(["--status", status] if status else [])]
    seen: list[str] = []
    while page := objects(output(run(*words, *(["--before", seen[-1]] if seen else []), dsn=dsn))):
        seen += [job["id"] for job in page]
        if len(page) < 2:
            break
    assert seen == ids[::-1]


def test_a_person_is_told_the_way_on(dsn: str, connect: Connect) -> None:
    ids = enqueue(connect(), 3)
    assert f"there may be more: --before {ids[1]}" in on_a_terminal("jobs", "list", "--limit", "2", dsn=dsn)
    assert "there may be more" not in on_a_terminal("jobs", "list", dsn=dsn)
