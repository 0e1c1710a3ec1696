"""Everything that a job can have, at once, in one pool.

Orgs with a protected table, priorities, schedules, paused queues, failures and checkpoints, dead letters, their
hooks, and their return.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.dead_letters import requeue_dead_letters
from pgworker.model.job import JobRequest
from pgworker.model.state import CancelAnswer
from tests.chaos.trials.apps.mixed import MAX_ATTEMPTS, app, effect
from tests.chaos.trials.figures import none_of
from tests.chaos.trials.ground import PATIENCE, database, logins, running_pool, scalar, wait_until_quiet
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool, eventually
from tests.sql.actors import ask
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences
from tests.sql.tenants import ORGS, Tenants, protect_notes

QUEUES = ["urgent", "paused", "default"]
BURIED = "select job_id from pgworker.dead_letter_jobs"
"""Each that is a dead letter now."""


@dataclass(slots=True)
class Ledger:
    """What was asked for and answered: org and failures of each job, and which were cancelled."""

    jobs: dict[UUID, tuple[str | None, int]] = field(default_factory=dict)
    cancelled: list[UUID] = field(default_factory=list)
    requeued: set[UUID] = field(default_factory=set)


@contextmanager
def stage(bench: Bench) -> Iterator[tuple[Tenants, str]]:
    """A database with a protected table and witnesses; who works there, and the DSN of one who may only enqueue."""
    with database(bench) as (dsn, owner), logins(dsn) as login:
        tenants = protect_notes(owner, login)
        owner.execute(WITNESSES.encode())
        owner.execute("create table chaos.told (job_id uuid, org_id text)")
        owner.execute(f"grant usage on schema chaos to {tenants.user}".encode())
        owner.execute(f"grant select, insert on all tables in schema chaos to {tenants.user}".encode())
        owner.execute("alter function chaos.see_recorded() security definer")
        owner.execute("alter function chaos.see_lease_ended() security definer")
        yield tenants, login("pgworker_enqueuer")


def request(dice: random.Random, soon: Any) -> tuple[JobRequest, str | None, int]:
    """A job of any kind, its org, and how often it is to fail."""
    org = dice.choice([*ORGS, None])
    failures = dice.choices([0, 1, 2, MAX_ATTEMPTS, MAX_ATTEMPTS + 1], [70, 12, 6, 8, 4])[0]
    options = effect.options(
        org_id=org,
        queue=dice.choice(QUEUES),
        priority=dice.randrange(10),
        run_at=soon + timedelta(seconds=dice.uniform(0, 1.5)) if dice.random() < 0.3 else None,
    )
    return options.job(org, failures), org, failures


def run(bench: Bench) -> Sequence[Figure]:
    ledger = Ledger()
    with stage(bench) as (tenants, enqueuer):
        owner = tenants.owner
        settings: dict[str, Any] = {"app": "tests.chaos.trials.apps.mixed:app", "workers": 2, "slots": 2}
        with running_pool(tenants.dsn, bench.directory / "pool.log", queues=QUEUES, **settings) as pool:
            _enqueue(bench, ledger, enqueuer, owner, bench.size // 2)
            during = _pause(bench, ledger, enqueuer, owner)
            _return_dead_letters(ledger, owner)
            _end(pool, owner)
        return _figures(ledger, owner, during)


def _enqueue(bench: Bench, ledger: Ledger, enqueuer: str, owner: Connection[Any], jobs: int) -> None:
    """In transactions of up to ten, of which one in ten is rolled back; now and then one that waits is cancelled."""
    dice = bench.dice
    with psycopg.connect(enqueuer) as connection:
        while jobs > 0:
            now = scalar(owner, "select clock_timestamp()")
            made = [request(dice, now) for _ in range(dice.randrange(1, 11))]
            ids = [job.id for job in app.enqueue_many([job for job, *_ in made], connection)]
            if dice.random() < 0.1:
                connection.rollback()
                continue
            connection.commit()
            jobs -= len(made)
            ledger.jobs |= {job: (org, failures) for job, (_, org, failures) in zip(ids, made, strict=True)}
            answer = cancel_job(owner, ids[-1]) if dice.random() < 0.3 else CancelAnswer.TOO_LATE
            if answer is CancelAnswer.CANCELLED:
                ledger.cancelled.append(ids[-1])
            elif answer is CancelAnswer.REQUESTED:  # it ends as it likes
                del ledger.jobs[ids[-1]]


def _pause(bench: Bench, ledger: Ledger, enqueuer: str, owner: Connection[Any]) -> int:
    """Pause a queue, let what was claimed of it end, enqueue more; executions that began there meanwhile."""
    app.use_dsn(owner.info.dsn)
    app.pause("paused")
    held = """select count(*) from pgworker.job_leases as lease, unnest(job_ids) as held
              join pgworker.jobs on id = held where queue = 'paused'"""
    eventually(lambda: scalar(owner, held) == 0, "what was claimed before has ended", PATIENCE)
    ran = """select count(*) from pgworker.job_executions join pgworker.jobs on id = job_id
             where queue = 'paused' and outcome <> 'cancelled'"""
    before = scalar(owner, ran)
    _enqueue(bench, ledger, enqueuer, owner, bench.size - bench.size // 2)
    others = "select count(*) from pgworker.job_queue where queue <> 'paused'"
    eventually(lambda: scalar(owner, others) == 0, "the other queues are empty", PATIENCE)
    after = scalar(owner, ran)
    app.resume("paused")
    app.close()
    return int(after - before)


def _return_dead_letters(ledger: Ledger, owner: Connection[Any]) -> None:
    """Once each: who was to fail as often as it may succeeds then, or fails once more and then succeeds."""
    doomed = {job for job, (_, failures) in ledger.jobs.items() if failures >= MAX_ATTEMPTS} - set(ledger.cancelled)

    def requeue() -> bool:
        ledger.requeued.update(requeue_dead_letters(owner, ask(owner, BURIED)))
        return doomed <= ledger.requeued

    eventually(requeue, "all that are to die have died, and were returned", PATIENCE)


def _end(pool: Pool, owner: Connection[Any]) -> None:
    wait_until_quiet(owner)
    pool.send(signal.SIGTERM)
    assert pool.wait() == 0


def _figures(ledger: Ledger, owner: Connection[Any], during_pause: int) -> list[Figure]:
    _store(ledger, owner)
    effects = Counter(owner.execute("select job_id from chaos.effect").fetchall())
    alive = set(ledger.jobs) - set(ledger.cancelled)
    wrong = [job for job in ledger.jobs if effects[(job,)] != (job in alive)]
    found = Counter(owner.execute("select org_id, note from shop.notes where note not like 'of %'").fetchall())
    expected = Counter((ledger.jobs[job][0], str(job)) for job in alive if ledger.jobs[job][0])
    found = Counter({row: count for row, count in found.items() if UUID(row[1]) in ledger.jobs})
    told = Counter(row for row in owner.execute("select job_id, org_id from chaos.told") if row[0] in ledger.jobs)
    hooks = Counter((job, ledger.jobs[job][0]) for job in ledger.requeued if job in ledger.jobs)
    unexpected = owner.execute(
        "select error->>'message' from pgworker.job_executions where outcome = 'failed'"
        " and error->>'type' <> 'ConnectionError' limit 5"
    ).fetchall()
    early = owner.execute(
        "select id from pgworker.job_executions join pgworker.jobs on id = job_id"
        " where execution = 1 and started_at < run_at - interval '1 millisecond'"
    ).fetchall()
    return [
        Figure("jobs, cancelled, given up and returned", "", f"{len(ledger.jobs):,}, {_sizes(ledger)}", None),
        none_of("jobs without exactly their one effect", wrong),
        none_of("rows of another org, or none of one's own (I8)", (found - expected) + (expected - found)),
        none_of("what handlers did not expect", unexpected),
        none_of("hooks that were not called once, for the org", (told - hooks) + (hooks - told)),
        none_of("jobs that ran before their time", early),
        none_of("executions that began in a paused queue", during_pause),
        none_of("invariants that are broken", offences(owner, {**STORED, **WITNESSED})),
    ]


def _sizes(ledger: Ledger) -> str:
    return f"{len(ledger.cancelled):,}, {len(ledger.requeued):,}"


def _store(ledger: Ledger, owner: Connection[Any]) -> None:
    for table, rows in (("enqueued", list(ledger.jobs)), ("cancelled", ledger.cancelled)):
        with owner.cursor() as cursor, cursor.copy(f"copy chaos.{table} from stdin".encode()) as copy:
            for job in rows:
                copy.write_row((job,))


TRIAL = Trial(
    name="paths",
    promise="whatever jobs have at once (org, schedule, pause, checkpoint, hook), each has its one effect, for its org",
    unit="jobs",
    full=20_000,
    short=150,
    run=run,
)
