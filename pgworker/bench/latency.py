"""From when a job is to be enqueued to the first line of its handler, under a steady load that leaves the pool idle.

The clock starts when the job was due to be sent, also if the one before it still kept the sender: else a stall would
count once, and not for all that waited behind it (coordinated omission).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from pgworker.bench.failure import BenchFailed
from pgworker.bench.ground import Ground
from pgworker.bench.jobs import stamp
from pgworker.bench.meter import Cost, cost_since, read_meter
from pgworker.bench.quantiles import Quantiles, histogram

_SPIN = 0.0005  # seconds
_EVERY = 5  # of how many jobs one is large
_KEPT = 0.95  # of the rate must have been achieved
_MANY = 100  # jobs from which on that is asked
_WARM_UP = 20
"""Jobs that come first and don't count: plans are made, modules imported."""

_ANSWERS = """
    select result::text::bigint from pgworker.job_executions where outcome = 'succeeded' order by job_id
"""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """`rate` jobs a second for `seconds`, at even distances; the argument of every fifth has `large` bytes."""

    rate: float
    seconds: float
    large: int = 0


@dataclass(frozen=True, slots=True)
class Latency:
    """One run. `commit`: how long the call of `enqueue` took, its commit included, which `start` includes as well. Both
    are of the small jobs, if there are large ones."""

    rate: float
    achieved_per_second: float
    seconds: float
    large: int
    workers: int
    slots: int
    start: Quantiles
    commit: Quantiles
    cost: Cost
    histogram_ms: list[tuple[float | None, int]]


def measure_latency(ground: Ground, rhythm: Rhythm, workers: int, slots: int) -> Latency:
    """One enqueue and one commit at a time. BenchFailed: they took longer than the time between two of them."""
    jobs = max(1, round(rhythm.rate * rhythm.seconds))
    large = {number for number in range(jobs) if rhythm.large and number % _EVERY == _EVERY - 1}
    filling = random.randbytes(rhythm.large // 2 + 1).hex()[: rhythm.large]  # which nothing makes smaller but by half
    with ground.pools(1, workers, "--slots", str(slots)) as pools:
        for _ in range(_WARM_UP):
            _enqueue(ground, time.monotonic_ns(), "")
            time.sleep(0.02)
        before = read_meter(ground, pools)
        began = time.monotonic_ns()
        commits = [
            _enqueue(ground, _wait_for(began, number, rhythm.rate), filling if number in large else "")
            for number in range(jobs)
        ]
        achieved = jobs / ((time.monotonic_ns() - began) / 1e9)
        if achieved < _KEPT * rhythm.rate and jobs >= _MANY:
            raise BenchFailed(
                f"one sender enqueues no more than {achieved:,.0f} jobs a second here, so what it is late would be"
                " measured: give a lower --rate"
            )
        ground.wait(
            "select count(*) = %s from pgworker.job_executions where outcome = 'succeeded'",
            jobs + _WARM_UP,
            doing="waiting for the last of them",
        )
        spent = cost_since(ground, jobs, before, pools)
    starts = [nanoseconds / 1e6 for (nanoseconds,) in ground.connection.execute(_ANSWERS).fetchall()][_WARM_UP:]
    if len(starts) != jobs:
        raise BenchFailed(f"{jobs} jobs were enqueued and {len(starts)} have succeeded: the figures would be worthless")
    small = [number for number in range(jobs) if number not in large]
    starts, commits = [starts[number] for number in small], [commits[number] for number in small]
    return Latency(
        rhythm.rate,
        achieved,
        rhythm.seconds,
        rhythm.large,
        workers,
        slots,
        Quantiles.of(starts),
        Quantiles.of(commits),
        spent,
        histogram(starts),
    )


def _wait_for(began: int, number: int, rate: float) -> int:
    """The moment at which this one is due, when it has come."""
    due = began + int(number / rate * 1e9)
    time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9 - _SPIN))
    while time.monotonic_ns() < due:
        pass  # a sleep would end a tenth of a millisecond late
    return due


def _enqueue(ground: Ground, due: int, filling: str) -> float:
    """Milliseconds that it took."""
    began = time.monotonic_ns()
    stamp.using(ground.connection).enqueue(due_ns=due, filling=filling)
    return (time.monotonic_ns() - began) / 1e6
