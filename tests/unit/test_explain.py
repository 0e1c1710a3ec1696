# ruff: noqa: E501  sentences stand here as they are printed
"""Every explanation that a job can have, from facts alone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from pgworker.inspection.dead_letters import DeadLetterDetail
from pgworker.inspection.explain import Reason, explain
from pgworker.inspection.facts import Facts, LastEnd, Servers
from pgworker.inspection.jobs import ClaimRecord, ExecutionRecord, JobDetail, JobRecord
from pgworker.inspection.queues import Count
from pgworker.model.state import WorkerState

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=timezone.utc)
JOB, OTHER, WORKER = UUID(int=7), UUID(int=8), UUID(int=9)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def detail(
    status: str = "pending", claim: ClaimRecord | None = None, last: ExecutionRecord | None = None, **job: Any
) -> JobDetail:
    record = JobRecord(
        id=JOB,
        status=status,
        queue="mail",
        task="shop.greet",
        org_id=None,
        priority=5,
        max_attempts=25,
        failures=0,
        timeout=60.0,
        created_at=ago(600),
        run_at=ago(30),
        payload="{}",
        headers=None,
        seen_at=NOW,
    )
    return JobDetail(replace(record, **job), claim, None, [last] if last else [])


def claim(**changes: Any) -> ClaimRecord:
    record = ClaimRecord(
        execution=1,
        failures=0,
        position=1,
        claimed=1,
        cancel_requested=False,
        claimed_at=ago(20),
        expires_at=ago(-40),
        lease_id=OTHER,
        worker_id=WORKER,
        host="a",
        pid=12,
        worker_number=3,
        beat_at=ago(2),
        ended_how=None,
        started_at=None,
    )
    return replace(record, **changes)


def ended(outcome: str, **changes: Any) -> ExecutionRecord:
    record = ExecutionRecord(
        execution=1,
        outcome=outcome,
        failures=1,
        started_at=ago(181.5),
        finished_at=ago(180),
        cause=None,
        error=None,
        result=None,
        worker_id=WORKER,
        host="a",
        pid=12,
        worker_number=3,
    )
    return replace(record, **changes)


FAILED = ended("failed", error=json.dumps({"type": "ValueError", "message": "no\nsuch luck", "traceback": "…"}))


def servers(
    *queues: str, tasks: tuple[str, ...] | None = ("shop.greet",), silent: int = 0, silence: float = 2.0, **states: int
) -> Servers:
    return Servers(
        queues or ("mail",),
        None if tasks is None else frozenset(tasks),
        silent,
        silence,
        {WorkerState(state): count for state, count in states.items()},
    )


BUSY = (servers(busy=8),)
ALIVE = (servers(idle=1, busy=7),)

CASES: dict[str, tuple[Facts, Reason, str, str | None]] = {
    "it runs": (
        Facts(detail("running", claim(started_at=ago(12))), servers=ALIVE),
        Reason.RUNNING,
        "It runs on worker 3 on host a (pid 12), for 12s; its time is up in 48s.",
        None,
    ),
    "it runs, for too long, and was cancelled": (
        Facts(detail("running", claim(started_at=ago(72), cancel_requested=True))),
        Reason.RUNNING,
        "It runs on worker 3 on host a (pid 12), for 72s; its time was up 12s ago. Somebody has asked it to stop.",
        None,
    ),
    "it runs without a deadline": (
        Facts(detail("running", claim(started_at=ago(12)), timeout=None)),
        Reason.RUNNING,
        "It runs on worker 3 on host a (pid 12), for 12s.",
        None,
    ),
    "it is claimed behind others": (
        Facts(detail("running", claim(claimed_at=ago(2), position=4)), line=(OTHER, WORKER)),
        Reason.IN_LINE,
        f"It was claimed 2.0s ago by worker 3 on host a (pid 12), third in line behind {OTHER}.",
        f"pgworker jobs explain {OTHER}",
    ),
    "it is claimed behind many": (
        Facts(detail("running", claim()), line=(OTHER,) * 9),
        Reason.IN_LINE,
        f"It was claimed 20s ago by worker 3 on host a (pid 12), number 10 in line behind {OTHER}.",
        f"pgworker jobs explain {OTHER}",
    ),
    "it is claimed and next": (
        Facts(detail("running", claim(claimed_at=ago(0.1)))),
        Reason.IN_LINE,
        (
            "It was claimed 100ms ago by worker 3 on host a (pid 12), which starts it now, or has since its last"
            " heartbeat."
        ),
        None,
    ),
    "it is claimed by a program without heartbeats": (
        Facts(detail("running", claim(host=None, beat_at=None))),
        Reason.IN_LINE,
        (
            f"It was claimed 20s ago by worker {WORKER} (nothing else is known of it),"
            " which starts it now, or has since its last heartbeat."
        ),
        None,
    ),
    "its worker is silent": (
        Facts(detail("running", claim(beat_at=ago(40), expires_at=ago(-20), started_at=ago(90))), servers=ALIVE),
        Reason.WORKER_SILENT,
        "Its worker, worker 3 on host a (pid 12), has been silent for 40s. Its lease ends in 20s; if it is not heard of by then, a pool takes the job back.",
        None,
    ),
    "its worker is silent, as are all": (
        Facts(detail("running", claim(beat_at=ago(40), expires_at=ago(-20))), servers=(servers(silent=1),)),
        Reason.WORKER_SILENT,
        "Its worker, worker 3 on host a (pid 12), has been silent for 40s. Its lease ends in 20s, and no pool is alive to take the job back after that: start one with `pgworker start`.",
        None,
    ),
    "its lease is over": (
        Facts(detail("running", claim(expires_at=ago(5), claimed_at=ago(65))), servers=ALIVE),
        Reason.LEASE_EXPIRED,
        (
            "It was claimed 65s ago by worker 3 on host a (pid 12), whose lease ended 5.0s ago. A pool takes the job back"
            " within seconds."
        ),
        None,
    ),
    "its worker has ended, and nobody is left": (
        Facts(detail("running", claim(ended_how="killed by SIGKILL"))),
        Reason.WORKER_ENDED,
        (
            "Its worker, worker 3 on host a (pid 12), has ended (killed by SIGKILL). No pool is alive to take the job back:"
            " start one with `pgworker start`."
        ),
        None,
    ),
    "it is scheduled": (
        Facts(detail("scheduled", run_at=ago(-180)), servers=ALIVE),
        Reason.SCHEDULED,
        "It is due in 3m, at 2030-01-31 12:03:00 UTC.",
        f"pgworker jobs retry {JOB}",
    ),
    "it is scheduled for a queue that is paused": (
        Facts(detail("scheduled", run_at=ago(-180)), paused_for=60.0, servers=ALIVE),
        Reason.SCHEDULED,
        "It is due in 3m, at 2030-01-31 12:03:00 UTC. It will not then: its queue, mail, has been paused for 60s.",
        "pgworker queues resume mail",
    ),
    "it waits for its retry": (
        Facts(detail("failed", last=FAILED, run_at=ago(-20), failures=2), servers=ALIVE),
        Reason.RETRY,
        (
            "It has failed 2 of 25 times, last with ValueError: no such luck. It runs again in 20s, at 2030-01-31 12:00:20"
            " UTC."
        ),
        f"pgworker jobs retry {JOB}",
    ),
    "its queue is paused": (
        Facts(detail(), paused_for=180.0),
        Reason.QUEUE_PAUSED,
        "Its queue, mail, has been paused for 3m.",
        "pgworker queues resume mail",
    ),
    "it has failed and its queue is paused": (
        Facts(detail("failed", last=FAILED, failures=1), paused_for=180.0),
        Reason.QUEUE_PAUSED,
        "It has failed 1 of 25 times, last with ValueError: no such luck. Its queue, mail, has been paused for 3m.",
        "pgworker queues resume mail",
    ),
    "nobody is alive": (
        Facts(detail()),
        Reason.NO_WORKERS,
        "No worker is alive on any host.",
        "pgworker start --app MODULE:APP",
    ),
    "nobody is alive any more": (
        Facts(detail(), last_end=LastEnd(12.0, "worker 1 (pid 7) died: exit code 70")),
        Reason.NO_WORKERS,
        (
            "No worker is alive on any host. The last one of its queue ended 12s ago: worker 1 (pid 7) died: exit code 70."
        ),
        "pgworker start --app MODULE:APP",
    ),
    "nobody serves the queue any more": (
        Facts(detail(), servers=(servers("main", busy=1),), last_end=LastEnd(180.0, "worker 1 (pid 7) ended")),
        Reason.QUEUE_UNSERVED,
        "No living worker serves the queue mail; the last one that did ended 3m ago: worker 1 (pid 7) ended.",
        "pgworker start --app MODULE:APP -q mail",
    ),
    "nobody serves the queue, whose name is like another": (
        Facts(detail(queue="mial"), servers=(servers("default", "mail", busy=1),)),
        Reason.QUEUE_UNSERVED,
        "No living worker serves the queue mial; did you mean mail?",
        f"pgworker jobs cancel {JOB}  # if it was a mistake",
    ),
    "nobody serves the queue": (
        Facts(detail(queue="reports"), servers=(servers("default", busy=1),)),
        Reason.QUEUE_UNSERVED,
        "No living worker serves the queue reports: is it deployed, is its name right?",
        "pgworker start --app MODULE:APP -q reports",
    ),
    "nobody serves the task, whose name is like another": (
        Facts(detail(task="shop.great"), servers=ALIVE),
        Reason.TASK_UNSERVED,
        "No living worker of the queue mail serves the task shop.great; did you mean shop.greet?",
        f"pgworker jobs cancel {JOB}  # if it was a mistake",
    ),
    "others serve the task, on other queues": (
        Facts(detail(), servers=(servers(tasks=("t",), busy=1), servers("default", "slow", idle=1))),
        Reason.TASK_UNSERVED,
        "No living worker of the queue mail serves the task shop.greet; those of default, slow do.",
        f"pgworker jobs cancel {JOB}  # if it was a mistake",
    ),
    "those who serve it are silent": (
        Facts(detail(), servers=(servers(silent=3, silence=40.0), servers("default", idle=1))),
        Reason.WORKERS_SILENT,
        (
            "All workers that serve it (3) have been silent for 40s or more: are their hosts up, do they reach the"
            " database?"
        ),
        "pgworker workers",
    ),
    "those who serve it claim nothing": (
        Facts(detail(), servers=(servers(paused=2, draining=1), servers(tasks=None, starting=1))),
        Reason.WORKERS_NOT_CLAIMING,
        (
            "No worker that serves it claims anything: 1 is starting, 1 is draining, 2 are paused (USR2 to the master"
            " resumes)."
        ),
        "pgworker workers",
    ),
    "others come first": (
        Facts(detail(), servers=BUSY, ahead=Count(1234)),
        Reason.BACKLOG,
        (
            "It has been due for 30s and waits behind 1,234 jobs of a higher priority or an earlier time. Of its workers, 8"
            " are busy."
        ),
        "pgworker workers",
    ),
    "very many come first": (
        Facts(detail(), servers=ALIVE, ahead=Count(10_000, is_more=True)),
        Reason.BACKLOG,
        (
            "It has been due for 30s and waits behind 10,000 or more jobs of a higher priority or an earlier time. Of its"
            " workers, 1 is idle, 7 are busy."
        ),
        "pgworker queues list",
    ),
    "it is the first, and all are busy": (
        Facts(detail(), servers=BUSY),
        Reason.WORKERS_BUSY,
        "It has been due for 30s and is the first in line, but no worker is free: 8 are busy.",
        "pgworker workers",
    ),
    "it has kept its place, but ran until its worker died": (
        Facts(detail(last=ended("lost", finished_at=ago(10))), servers=BUSY),
        Reason.WORKERS_BUSY,
        "It has been due for 10s and is the first in line, but no worker is free: 8 are busy.",
        "pgworker workers",
    ),
    "it is about to be claimed": (
        Facts(detail(run_at=ago(0.2)), servers=ALIVE),
        Reason.DUE,
        "It has been due for 200ms, and a worker is free: it is claimed within a second or two.",
        None,
    ),
    "it has succeeded": (
        Facts(detail("succeeded", last=ended("succeeded"))),
        Reason.SUCCEEDED,
        "It succeeded 3m ago, in 1.5s, by worker 3 on host a (pid 12).",
        None,
    ),
    "it was cancelled": (
        Facts(detail("cancelled", last=ended("cancelled", cause="cancelled while it waited"))),
        Reason.CANCELLED,
        "It was cancelled 3m ago: cancelled while it waited.",
        None,
    ),
    "it is nowhere": (
        Facts(detail("LOST")),
        Reason.LOST,
        "It is nowhere, which must not happen: please report this as a bug of pgworker.",
        f"pgworker jobs show {JOB}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_explanation_says_the_one_thing_that_matters_and_the_command_that_helps(case: str) -> None:
    facts, reason, sentence, command = CASES[case]
    found = explain(facts)
    assert (found.reason, found.sentence, found.command) == (reason, sentence, command)


DEAD = DeadLetterDetail(
    job_id=JOB,
    queue="mail",
    task="shop.greet",
    org_id=None,
    priority=5,
    created_at=ago(600),
    run_at=ago(600),
    died_at=ago(120),
    execution=25,
    failures=25,
    max_attempts=25,
    timeout=60.0,
    outcome="failed",
    payload="{}",
    headers=None,
    error=FAILED.error,
    cause=None,
    hook=None,
    seen_at=NOW,
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "after 25 failures: ValueError: no such luck."),
        ({"failures": 1, "error": None, "cause": "killed by SIGKILL"}, "after 1 failure: killed by SIGKILL."),
        ({"failures": 0, "error": '"text"', "cause": None, "outcome": "lost"}, "ago: lost."),
    ],
)
def test_a_dead_letter_says_why_it_was_given_up_and_how_it_comes_back(changes: dict[str, Any], why: str) -> None:
    found = explain(Facts(detail("dead_letter"), dead=replace(DEAD, **changes)))
    assert found.reason is Reason.DEAD_LETTER
    assert found.sentence.startswith("It was given up 2m ago") or "120s ago" in found.sentence
    assert why in found.sentence
    assert found.command == f"pgworker dead-letters requeue {JOB}"


def test_every_reason_has_a_case() -> None:
    assert {reason for _, reason, _, _ in CASES.values()} | {Reason.DEAD_LETTER} == set(Reason)


def test_a_long_error_is_cut() -> None:
    error = json.dumps({"type": "ValueError", "message": "x" * 5000})
    found = explain(Facts(detail("failed", last=ended("failed", error=error), failures=1), paused_for=1.0))
    assert len(found.sentence) < 500
