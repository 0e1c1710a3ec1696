"""How fast pools drain a backlog, from the moment they may claim to when nothing waits or runs any more.

Behind a pooler, where they only poll, from the first claim on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pgworker.bench.failure import BenchFailed
from pgworker.bench.ground import QUEUE, Ground
from pgworker.bench.jobs import app, typical
from pgworker.bench.meter import Cost, cost, read_meter
from pgworker.config.settings import PoolSettings
from pgworker.control.queues import pause_queues, resume_queues
from pgworker.model.job import JobRequest

BATCH = 10_000
"""Jobs in one call of `enqueue_many`."""
_LOOK = 0.02  # seconds between two looks for the end: so much longer a drain may seem

IS_EMPTY = """
    select case when exists (select from pgworker.job_leases) then false  -- the cheaper question first
                else not exists (select from pgworker.job_queue) end
"""

_HAS_BEGUN = "select exists (select from pgworker.job_leases) or exists (select from pgworker.job_executions)"


@dataclass(frozen=True, slots=True)
class Load:
    """What is drained by whom. `job` makes the job of each number."""

    jobs: int
    workers: int = 2
    slots: int = 1
    pools: int = 1
    job: Callable[[int], JobRequest] = typical


@dataclass(frozen=True, slots=True)
class Drained:
    """One run. WAL and transactions are of the whole life of a job, enqueue included."""

    jobs: int
    pools: int
    workers: int
    slots: int
    enqueued_at_once: int
    claimed_at_once: int
    enqueue_seconds: float
    enqueued_per_second: float
    seconds: float
    jobs_per_second: float
    cost: Cost


def drain(ground: Ground, load: Load) -> Drained:
    """Enqueue while the queue is paused, resume it once all workers are up, and wait until nothing is left."""
    pause_queues(ground.connection, [QUEUE])
    begun = read_meter(ground)
    enqueue_seconds = enqueue_all(ground, load)
    with ground.pools(load.pools, load.workers, "--slots", str(load.slots)) as pools:
        before = read_meter(ground, pools)
        started = time.perf_counter()
        resume_queues(ground.connection, [QUEUE])
        if ground.pooler:  # nobody hears of it: workers find out at their next poll, whose wait is no part of a drain
            ground.wait(_HAS_BEGUN, doing="waiting for the first claim", look=_LOOK / 10)
            started = time.perf_counter()
        ground.wait(IS_EMPTY, doing=f"draining {load.jobs:,} jobs", look=_LOOK)
        seconds = time.perf_counter() - started
        after = read_meter(ground, pools)
        done = ground.value("select count(*) from pgworker.job_executions where outcome = 'succeeded'")
        if done != load.jobs:
            raise BenchFailed(f"{load.jobs} jobs were enqueued and {done} have succeeded, so the figures mean nothing")
    return Drained(
        load.jobs,
        load.pools,
        load.workers,
        load.slots,
        BATCH,
        PoolSettings(workers=load.workers).max_batch,
        enqueue_seconds,
        load.jobs / enqueue_seconds,
        seconds,
        load.jobs / seconds,
        cost(ground, load.jobs, begun, before, after),
    )


def enqueue_all(ground: Ground, load: Load) -> float:
    """`BATCH` in each transaction; the seconds that it took."""
    started = time.perf_counter()
    for first in range(0, load.jobs, BATCH):
        jobs = [load.job(number) for number in range(first, min(load.jobs, first + BATCH))]
        app.enqueue_many(jobs, ground.connection)
        ground.say(f"enqueued {first:,} of {load.jobs:,}")
    return time.perf_counter() - started
