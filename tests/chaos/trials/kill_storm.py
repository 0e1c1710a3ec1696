"""Workers are killed again and again under load: no job is lost, none acknowledged twice, no effect wrong."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Thread

import psycopg

from pgworker.model.job import JobRequest
from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import app, effect, plain
from tests.chaos.trials.figures import durations, none_of, told
from tests.chaos.trials.ground import Ground, ground, pause
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool
from tests.sql.invariants import offences

WORKERS = 4
LARGE = 20_000
"""Jobs from which on workers are killed every two seconds, and jobs come as fast as they can be stored."""
STUCK = 60.0
"""Seconds without a job that ends after which the storm has failed."""

_WITNESSED = {
    name: query
    for name, query in ledgers.WRONG.items()
    if not name.startswith(("lost", "acknowledged twice", "effects"))
}

_RECLAIMED = """
    with death as (
        select killed.at, worker.worker_id, worker.ended_at
        from killed cross join lateral (
            select worker_id, ended_at from pgworker.worker_heartbeats as worker
            where worker.pid = killed.pid and worker.started_at < killed.at order by worker.started_at desc limit 1
        ) as worker
    )
    select extract(epoch from greatest(death.ended_at, max(lease_left.at)) - death.at)::float8, count(lease_left.at)
    from death left join chaos.lease_left on lease_left.worker_id = death.worker_id and lease_left.at > death.at
    group by death.worker_id, death.ended_at, death.at
"""
"""Of each kill: seconds until the death was recorded and the last of its leases was taken back, and how many."""


@dataclass(slots=True)
class Storm:
    """What is enqueued, and who is killed when, by the clock that this host and its server share."""

    ground: Ground
    jobs: int
    dice: random.Random
    kills: list[tuple[int, float]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def is_large(self) -> bool:
        return self.jobs >= LARGE

    @property
    def interval(self) -> float:
        return 2.0 if self.is_large else 0.3

    def requests(self) -> Iterator[JobRequest]:
        """Nine plain ones in ten; the others write in their own transaction. Of many, most are over at once."""
        for _ in range(self.jobs):
            takes_time = self.dice.random() < (0.02 if self.is_large else 0.9)
            seconds = round(self.dice.uniform(0, 0.015), 4) if takes_time else 0.0
            yield (effect if self.dice.random() < 0.1 else plain).job(seconds)

    def produce(self) -> None:
        """In a thread: a batch a transaction; its ids are in the ledger of the producer once it is acknowledged."""
        batch = 1000 if self.is_large else max(10, self.jobs // 15)
        requests = list(self.requests())
        try:
            with psycopg.connect(self.ground.dsn, autocommit=True) as connection:
                for first in range(0, self.jobs, batch):
                    stored = app.enqueue_many(requests[first : first + batch], connection)
                    self.ground.enqueued += [job.id for job in stored]
                    pause(0 if self.is_large else 0.2)
        except BaseException as error:  # noqa: BLE001 - it ends the trial
            self.error = error

    def kill_one(self, pool: Pool) -> None:
        victim = self.dice.choice(pool.workers or [0])
        if not victim:
            return
        now = time.time()
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.kills.append((victim, now))

    def rage(self, pool: Pool, bench: Bench) -> None:
        """Until everything that was enqueued has ended."""
        producing = Thread(target=self.produce)
        producing.start()
        ledger = self.ground.directory / ledgers.NAME
        done, moved = -1, time.monotonic()
        try:
            while producing.is_alive() or not self.ground.is_quiet:
                pause(self.interval)
                self.kill_one(pool)
                ended = ledger.stat().st_size if ledger.exists() else 0
                if ended != done:
                    done, moved = ended, time.monotonic()
                assert time.monotonic() - moved < STUCK, f"nothing moves: {self.ground.describe()}"
                if len(self.kills) % 25 == 24:
                    bench.tell(f"{len(self.kills) + 1} kills, {len(self.ground.enqueued):,} jobs enqueued")
        finally:
            producing.join()
        if self.error is not None:
            raise self.error


def run(bench: Bench) -> Sequence[Figure]:
    with ground(bench) as place:
        storm = Storm(place, bench.size, bench.dice)
        with place.pool(workers=WORKERS) as pool:
            began = time.monotonic()
            storm.rage(pool, bench)
            took = time.monotonic() - began
            pool.send(signal.SIGTERM)
            pool.wait()
        bench.tell("comparing ledgers")
        ledgers.store(place.connection, place.directory, place.enqueued)
        return [
            *figures_of(place),
            place.offences(),
            *deaths(storm),
            told("jobs a second", f"{bench.size / took:,.0f}"),
        ]


def figures_of(place: Ground) -> list[Figure]:
    """What ledgers, effects and executions don't agree in."""
    wrong = offences(place.connection, ledgers.WRONG)
    jobs = f"{len(place.enqueued):,}"
    counted = {
        "jobs lost": sum(len(rows) for name, rows in wrong.items() if name.startswith("lost")),
        "jobs acknowledged twice": sum(len(rows) for name, rows in wrong.items() if "twice" in name),
        "effects wrong": sum(len(rows) for name, rows in wrong.items() if name.startswith("effects")),
    }
    figures = [none_of(name, found, jobs) for name, found in counted.items()]
    other = sum(len(rows) for name, rows in wrong.items() if name in _WITNESSED)
    effects = place.scalar("select count(*) from chaos.effect")
    again = place.scalar(
        "select count(*) from (select from chaos.seen where kind = 'E' group by job_id having count(*) > 1) as job"
    )
    return [
        *figures,
        none_of("ledgers and executions that differ", other, jobs),
        told("effects", f"{effects:,}"),
        told("jobs that ran to their end again", f"{again:,}"),
    ]


def deaths(storm: Storm) -> list[Figure]:
    connection = storm.ground.connection
    connection.execute("create temp table killed (pid integer, at timestamptz)")
    with connection.cursor() as cursor:
        cursor.executemany("insert into killed values (%s, to_timestamp(%s))", storm.kills)
    found = storm.ground.rows(_RECLAIMED)
    assert len(found) == len(storm.kills), "each kill has its worker"
    held = sum(1 for _, leases in found if leases)
    promised = 1.0 if storm.is_large else None  # what a busy machine may miss by its load alone is only told
    return [
        durations("from a kill to its jobs reclaimed", promised, [float(seconds) for seconds, _ in found]),
        told("kills; of workers that held a lease", f"{len(found)}; {held}"),
    ]


TRIAL = Trial(
    name="kill_storm",
    promise="workers killed every 2 s: nothing lost, nothing acknowledged twice, no effect wrong; reclaimed within 1 s",
    unit="jobs",
    full=1_000_000,
    short=900,
    run=run,
)
