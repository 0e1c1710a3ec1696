"""Recycling: a worker that has reached a limit asks to be replaced; the master lets one at a time go."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from pgworker.config.settings import PoolSettings
from pgworker.linux.memory import private_bytes
from pgworker.linux.row import BoardRow
from pgworker.model.recycle import RecycleReason
from pgworker.observe.logs import fields, logger

MEMORY_EVERY = 5.0
"""Seconds between two looks at the own memory, which cost milliseconds per GB."""

_LOWERED_BY = 0.25  # at most: so that workers started together don't end together

log = logger("worker")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may reach; None: no limit. Memory in bytes, age in seconds."""

    jobs: int | None = None
    memory: int | None = None
    age: float | None = None

    @classmethod
    def draw(cls, settings: PoolSettings, worker_id: UUID) -> Limits:
        """Those of the settings, each lowered by up to a quarter, by the dice of this worker."""
        dice = random.Random(worker_id.int)
        jobs, memory, age = (1 - dice.uniform(0, _LOWERED_BY) for _ in range(3))
        return cls(
            None if settings.max_jobs is None else max(1, round(settings.max_jobs * jobs)),
            None if settings.max_memory is None else round(settings.max_memory * memory),
            None if settings.max_age is None else settings.max_age * age,
        )

    def find_reached(self, jobs: int, age: float, memory: int) -> RecycleReason:
        """The limit that is reached, or NONE. A worker that has run no job is never over its memory: the next one
        would be the same."""
        if self.jobs is not None and jobs >= self.jobs:
            return RecycleReason.JOBS
        if self.memory is not None and memory >= self.memory and jobs:
            return RecycleReason.MEMORY
        if self.age is not None and age >= self.age:
            return RecycleReason.AGE
        return RecycleReason.NONE


class Recycling:
    """Looks at this process between two rounds of the clerk, and says on the board that it wants to be replaced."""

    def __init__(self, limits: Limits, row: BoardRow) -> None:
        self._limits = limits
        self._row = row
        self._is_needed = limits != Limits()
        self._memory = 0
        self._next_memory = 0.0

    def look(self) -> None:
        if not self._is_needed:
            return
        now = time.monotonic()
        if self._limits.memory is not None and now >= self._next_memory:
            with suppress(OSError):  # no descriptor left to look: what was seen last
                self._memory = private_bytes()
            self._next_memory = now + MEMORY_EVERY
        jobs, age = self._row.jobs_done, now - self._row.forked_ns / 1e9
        reached = self._limits.find_reached(jobs, age, self._memory)
        if reached is RecycleReason.NONE:
            return
        self._is_needed = False
        self._row.want_recycle(reached)
        measured = f", {self._memory >> 20} MiB of its own" if self._limits.memory is not None else ""
        log.info(
            "to be replaced, %s: %d jobs in %.0f s%s",
            reached.words,
            jobs,
            age,
            measured,
            extra=fields("worker_limit_reached", jobs=jobs, duration=round(age, 3)),
        )
