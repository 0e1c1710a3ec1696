"""Bad inputs at every door: refused with an error that says what is wrong, or cleaned; nothing crashes or is stuck.

Half of them are thrown at the API, the commands and the SQL function by a program of its own (`apps.hostile_doors`);
the other half is what handlers return, raise and say in a real pool (`apps.hostile`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg import Connection

from tests.chaos.trials.apps import hostile_values as hostile
from tests.chaos.trials.apps.hostile import app, misbehave, misbehave_async
from tests.chaos.trials.figures import invariants, none_of, percentile, timed, told
from tests.chaos.trials.ground import database, running_pool, scalar
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import ROOT, Pool, eventually

APP = "tests.chaos.trials.apps.hostile:app"
DOORS = ("return", "raise", "discard", "retry", "snooze", "progress")

Answer = tuple[str, str, str, float, float]
"""Door, kind of value, how it was answered, milliseconds by the clock, and of CPU."""

History = tuple[tuple[str, int], ...]

SUCCEEDED = ("succeeded", 0)
FAILED_ONCE = ("failed", 1)
ENDS: dict[str, set[History]] = {
    "return": {(SUCCEEDED,)},
    "progress": {(SUCCEEDED,)},
    "raise": {(FAILED_ONCE, ("failed", 2))},
    "discard": {(FAILED_ONCE,), (FAILED_ONCE, ("succeeded", 1))},
    "retry": {(FAILED_ONCE, ("succeeded", 1)), (FAILED_ONCE,)},
    "snooze": {(("snoozed", 0), SUCCEEDED), (("snoozed", 0),), (FAILED_ONCE, ("succeeded", 1))},
}
"""Outcomes of a job's executions and failures charged by then, by what its handler does. One execution of `retry` and
`snooze`: the next is due in a time that the trial doesn't wait for. Of `discard`: making it may fail, an
ordinary error."""

_ENOUGH = 2000
"""Inputs from which on the CPU of a refusal is judged."""

LEFT = """
    select (select count(*) from pgworker.job_leases)
         + (select count(*) from pgworker.job_queue as q where run_at <= clock_timestamp() and task = any(%s)
              and queue = 'default')
"""


def run(bench: Bench) -> Sequence[Figure]:
    seed = str(bench.dice.random())
    with (
        database(bench) as (dsn, connection),
        running_pool(dsn, bench.directory / "pool.log", app=APP, workers=2, slots=2) as pool,
    ):
        before = pool.processes()
        attacker = _attack(dsn, seed, bench.size // 2)
        behaved = _misbehave(bench, connection, bench.size - bench.size // 2)
        answers, peak = _answers(attacker, bench)
        within = 60 + bench.size / 20
        eventually(lambda: scalar(connection, LEFT, list(app.tasks)) == 0, "all jobs have ended", within)
        figures = [
            *_of_doors(bench, answers, peak),
            *_of_handlers(connection, behaved),
            *_of_processes(pool, before),
            invariants(connection),
        ]
        pool.send(15)
        code = pool.wait()
        return [*figures, Figure("exit code of the pool at the end", "0", str(code), code == 0)]


def _attack(dsn: str, seed: str, attempts: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.chaos.trials.apps.hostile_doors", dsn, seed, str(attempts)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _answers(attacker: subprocess.Popen[str], bench: Bench) -> tuple[list[Answer], float]:
    said, _ = attacker.communicate(timeout=120 + bench.size)
    assert attacker.returncode == 0, f"a producer ended with {attacker.returncode}"
    *answers, peak = map(json.loads, said.splitlines())
    return answers, peak


def _misbehave(bench: Bench, connection: Connection[Any], jobs: int) -> dict[UUID, tuple[str, str]]:
    """Door and kind of each job."""
    made: dict[UUID, tuple[str, str]] = {}
    for number in range(jobs):
        door, seed = DOORS[number % len(DOORS)], str(bench.dice.random())
        task = bench.dice.choice([misbehave, misbehave_async])
        names = hostile.ERRORS if door == "raise" else hostile.VALUES
        kind = hostile.choice(names, hostile.dice_of(seed))
        made[task.using(connection).enqueue(door, seed).id] = door, kind
    return made


def _of_doors(bench: Bench, answers: Sequence[Answer], peak: float) -> list[Figure]:
    untyped = sorted({f"{door}, {kind}: {answer}" for door, kind, answer, *_ in answers if answer not in _TYPED})
    refusals = [times for door, _, answer, *times in answers if answer == "refused" and door != "a command"]
    wall, cpu = ([times[index] for times in refusals] for index in range(2))
    stored = sum(answer == "stored" for _, _, answer, *_ in answers)
    late = percentile(cpu, 99)
    quick = timed(bench, _ENOUGH, late < 100)
    return [
        told("inputs at the doors, stored of them", f"{len(answers):,}, {stored:,}"),
        none_of("refused without a typed error", untyped),
        Figure("CPU of a refusal, p99", "< 100 ms", f"{late:.1f} ms (max {max(cpu):.0f})", quick),
        told("time of a refusal, p99", f"{percentile(wall, 99):.1f} ms (max {max(wall):.0f})"),
        Figure("memory of the producer at most", "< 1 GiB", f"{peak:.0f} MiB", peak < 1024),
    ]


_TYPED = ("stored", "refused")


def _of_handlers(connection: Connection[Any], behaved: dict[UUID, tuple[str, str]]) -> list[Figure]:
    rows = connection.execute(
        "select job_id, array_agg(outcome::text order by execution), array_agg(failures order by execution)"
        " from pgworker.job_executions group by job_id"
    ).fetchall()
    histories = {job: tuple(zip(outcomes, failures, strict=True)) for job, outcomes, failures in rows}
    wrong = {
        f"{door}, {kind}: {histories.get(job)}"
        for job, (door, kind) in behaved.items()
        if histories.get(job, ()) not in ENDS[door] and not (kind == "Cancelled" and _is_cancelled(histories, job))
    }
    unsaid = scalar(
        connection,
        "select count(*) from pgworker.job_executions where outcome::text not in"
        " ('succeeded', 'failed', 'snoozed', 'cancelled')",
    )
    return [
        told("jobs whose handlers misbehaved", f"{len(behaved):,}"),
        none_of("histories that are wrong", sorted(wrong)),
        none_of("executions that ended for another reason", unsaid),
    ]


def _is_cancelled(histories: dict[UUID, History], job: UUID) -> bool:
    """As the handler said itself."""
    return [outcome for outcome, _ in histories.get(job, ())] == ["cancelled"]


def _of_processes(pool: Pool, before: dict[int, str]) -> list[Figure]:
    log = pool.log()
    gone = [title for pid, title in before.items() if pid not in pool.processes()]
    said = [line for line in log.splitlines() if any(f"event={event}" in line for event in _NEVER)]
    peaks = {title.split(" ")[1] if " " in title else title: memory(pid) for pid, title in before.items()}
    peak = ", ".join(f"{title} {mebibytes:.0f}" for title, mebibytes in sorted(peaks.items()))
    return [
        none_of("processes of the pool that were replaced", gone),
        none_of("settles that failed, and bugs, by the log", said),
        Figure("memory at most, MiB", "bounded", peak, max(peaks.values()) < 1000),
    ]


def memory(pid: int) -> float:
    """MiB that a process has had at most; 0 if it has gone."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


_NEVER = ("database_away", "worker_crashed", "progress_not_stored", "result_lost", "worker_died")

TRIAL = Trial(
    name="bad_inputs",
    promise="whatever is passed, returned or raised is refused with a typed error or cleaned, and nothing is stuck",
    unit="inputs",
    full=10_000,
    short=96,
    run=run,
)
