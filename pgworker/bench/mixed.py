"""Handlers that wait for something else, many at a time: sync ones in threads, async ones on an event loop."""

from __future__ import annotations

from dataclasses import dataclass

from pgworker.bench.drain import Drained, Load, drain
from pgworker.bench.ground import Ground
from pgworker.bench.jobs import sleep, sleep_async
from pgworker.errors import ConfigurationError

KINDS = {"threads": sleep, "async": sleep_async}


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


def measure_mixed(ground: Ground, kind: str, jobs: int, workers: int, in_flight: int, seconds: float) -> list[Mixed]:
    """One of `KINDS`. ConfigurationError: the jobs in flight don't divide by the workers."""
    slots, rest = divmod(in_flight, workers)
    if rest or not slots:
        raise ConfigurationError(f"{in_flight} jobs in flight can't be divided among {workers} workers")
    load = Load(jobs, workers, slots, job=lambda _number: KINDS[kind].job(seconds=seconds))
    return [Mixed(kind, seconds, in_flight, drain(ground, load))]
