"""From when a job is to be enqueued to the first line of its handler, under a steady load that leaves the pool idle.

The clock starts when the job was due to be sent, also if the one before it still kept the sender: else a stall would
count once, and not for all that waited behind it (coordinated omission).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pgworker.bench.failure import BenchFailed
from pgworker.bench.ground import Ground
from pgworker.bench.jobs import stamp
from pgworker.bench.quantiles import Quantiles, histogram

_SPIN = 0.0005  # seconds
_WARM_UP = 20
"""Jobs that come first and don't count: plans are made, modules imported."""

_ANSWERS = """
    select result::text::bigint from pgworker.job_executions where outcome = 'succeeded' order by job_id
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """One run. `commit`: how long the call of `enqueue` took, its commit included, which `start` includes as well."""

    rate: float
    seconds: float
    workers: int
    slots: int
    start: Quantiles
    commit: Quantiles
    histogram_ms: list[tuple[float | None, int]]


def measure_latency(ground: Ground, rate: float, seconds: float, workers: int, slots: int) -> Latency:
    """One enqueue and one commit at a time, `rate` a second, at even distances."""
    with ground.pools(1, workers, "--slots", str(slots)):
        for _ in range(_WARM_UP):
            _enqueue(ground, time.monotonic_ns())
            time.sleep(0.02)
        jobs = max(1, round(rate * seconds))
        commits, began = [], time.monotonic_ns()
        for number in range(jobs):
            due = began + int(number / rate * 1e9)
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9 - _SPIN))
            while time.monotonic_ns() < due:
                pass  # a sleep would end a tenth of a millisecond late
            commits.append(_enqueue(ground, due))
            if number % 10 == 0:
                ground.say(f"enqueued {number:,} of {jobs:,}")
        ground.wait(
            "select count(*) = %s from pgworker.job_executions where outcome = 'succeeded'",
            jobs + _WARM_UP,
            doing="waiting for the last of them",
        )
    answers = [nanoseconds / 1e6 for (nanoseconds,) in ground.connection.execute(_ANSWERS).fetchall()][_WARM_UP:]
    if len(answers) != jobs:
        raise BenchFailed(
            f"{jobs} jobs were enqueued and {len(answers)} have succeeded: the figures would be worthless"
        )
    return Latency(rate, seconds, workers, slots, Quantiles.of(answers), Quantiles.of(commits), histogram(answers))


def _enqueue(ground: Ground, due: int) -> float:
    """Milliseconds that it took."""
    began = time.monotonic_ns()
    stamp.using(ground.connection).enqueue(due_ns=due)
    return (time.monotonic_ns() - began) / 1e6
