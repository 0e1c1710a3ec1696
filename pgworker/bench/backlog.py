"""Whether a claim minds what else is stored: jobs that wait behind it, are scheduled above it, or ended long ago."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from psycopg.types.json import Jsonb

from pgworker.bench.claimant import Claimant
from pgworker.bench.failure import BenchFailed
from pgworker.bench.ground import QUEUE, Ground
from pgworker.bench.jobs import PAYLOAD, app, noop, typical
from pgworker.bench.meter import Cost, cost_since, read_meter
from pgworker.bench.quantiles import Quantiles

_SLICE = 100_000
"""Rows in one statement, so that Ctrl-C is soon obeyed."""

_DAYS = 7
_WARM_UP = 20

_MAKE_DAY = "select pgworker.create_partition((now() at time zone 'UTC')::date - %s::integer)"

# Each of a moment of its own, as jobs come: so they lie in the order in which they are claimed.
_FILL_WAITING = """
    with job as (
        insert into pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload)
        select pgworker.uuid7(moment.at), moment.at, moment.at + %(later)s::float8 * interval '1 second', 1800000,
               %(priority)s, 25, %(queue)s, %(task)s, %(payload)s::jsonb
        from (select clock_timestamp() as at from generate_series(1, %(rows)s) offset 0) as moment
        returning id, run_at, priority, queue, task
    )
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task)
    select id, run_at, 1, priority, 0, queue, task from job
"""

_FILL_FINISHED = """
    with job as (
        insert into pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload)
        select pgworker.uuid7(moment.at), moment.at, moment.at, 1800000, 5, 25, %(queue)s, %(task)s, %(payload)s::jsonb
        from (select now() - %(days)s * interval '1 day' as at) as moment, generate_series(1, %(rows)s)
        returning id, run_at
    )
    insert into pgworker.job_executions
        (job_id, lease_id, worker_id, started_at, finished_at, execution, outcome, position, failures)
    select id, gen_random_uuid(), gen_random_uuid(), run_at, run_at, 1, 'succeeded', 1, 0 from job
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What else is there: due and behind, scheduled for tomorrow at a higher priority, ended over the last week."""

    waiting: int = 0
    scheduled: int = 0
    finished: int = 0

    def beyond(self, there: Backlog) -> Backlog:
        """What has to be added."""
        return Backlog(self.waiting - there.waiting, self.scheduled - there.scheduled, self.finished - there.finished)


@dataclass(frozen=True, slots=True)
class Claims:
    """One case: claims of `batch` jobs each, by one worker's connection, while nothing else happens."""

    waiting: int
    scheduled: int
    finished: int
    batch: int
    claim: Quantiles
    cost: Cost
    """Per job, its enqueue and settle included."""


def measure_backlogs(ground: Ground, besides: Sequence[Backlog], claims: int, batch: int) -> list[Claims]:
    """One case after the other; what one has stored stays for the next, so they come in the order of their size."""
    cases, there = [], Backlog()
    for beside in sorted(besides, key=lambda backlog: (backlog.waiting, backlog.scheduled, backlog.finished)):
        _fill(ground, beside.beyond(there))
        cases.append(_measure(ground, beside, claims, batch))
        there = beside
    return cases


def _measure(ground: Ground, beside: Backlog, claims: int, batch: int) -> Claims:
    """A warm-up comes first and does not count."""
    with closing(Claimant(ground.dsn)) as claimant:
        for _ in range(_WARM_UP):
            _claim(ground, claimant, batch)
        before, durations = read_meter(ground), []
        for number in range(claims):
            durations.append(_claim(ground, claimant, batch))
            ground.say(f"claimed {number:,} times of {claims:,}")
        spent = cost_since(ground, claims * batch, before)
    return Claims(beside.waiting, beside.scheduled, beside.finished, batch, Quantiles.of(durations), spent)


def _claim(ground: Ground, claimant: Claimant, batch: int) -> float:
    """Milliseconds of a claim, before which as many jobs are enqueued as it takes."""
    app.enqueue_many([typical(0)] * batch, ground.connection)
    jobs, took = claimant.claim(batch)
    if jobs != batch:
        raise BenchFailed(f"a claim of {batch} got {jobs} jobs, though more wait: the figures would be worthless")
    return took


def _fill(ground: Ground, beside: Backlog) -> None:
    """Store so many rows of each kind, and have the server's statistics know of them."""
    common = {"queue": QUEUE, "task": noop.name, "payload": Jsonb(PAYLOAD)}
    for rows in _slices(ground, "waiting", beside.waiting):
        ground.connection.execute(_FILL_WAITING, common | {"rows": rows, "later": 0.0, "priority": 5})
    for rows in _slices(ground, "scheduled", beside.scheduled):
        ground.connection.execute(_FILL_WAITING, common | {"rows": rows, "later": 86_400.0, "priority": 9})
    for days in range(1, _DAYS + 1) if beside.finished else ():
        ground.connection.execute(_MAKE_DAY, [days])
    for number, rows in enumerate(_slices(ground, "finished", beside.finished)):
        ground.connection.execute(_FILL_FINISHED, common | {"rows": rows, "days": 1 + number % _DAYS})
    ground.say("vacuuming")
    ground.connection.execute("vacuum analyze pgworker.jobs, pgworker.job_queue, pgworker.job_executions")


def _slices(ground: Ground, kind: str, rows: int) -> Iterator[int]:
    for first in range(0, rows, _SLICE):
        ground.say(f"{kind} jobs: {first:,} of {rows:,} stored")
        yield min(_SLICE, rows - first)
