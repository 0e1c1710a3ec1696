"""Handlers that wait for something else, many at a time: sync ones in threads, async ones on an event loop."""

from __future__ import annotations

from dataclasses import dataclass

from pgworker.bench.drain import Drained, Load, drain
from pgworker.bench.ground import Ground
from pgworker.bench.jobs import sleep, sleep_async
from pgworker.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Mixed:
    """One kind of handler; `in_flight`: slots of all workers."""

    handlers: str
    handler_seconds: float
    in_flight: int
    drained: Drained

    @property
    def jobs_per_second(self) -> float:
        return self.drained.jobs_per_second


def measure_mixed(ground: Ground, jobs: int, workers: int, in_flight: int, seconds: float) -> list[Mixed]:
    """Each kind by itself. ConfigurationError: the jobs in flight don't divide by the workers."""
    slots, rest = divmod(in_flight, workers)
    if rest or not slots:
        raise ConfigurationError(f"{in_flight} jobs in flight can't be divided among {workers} workers")
    threads = Load(jobs, workers, slots, job=lambda _number: sleep.job(seconds=seconds))
    on_loop = Load(jobs, workers, slots, job=lambda _number: sleep_async.job(seconds=seconds))
    return [
        Mixed(kind, seconds, in_flight, drain(ground, load))
        for kind, load in (("threads", threads), ("async", on_loop))
    ]
