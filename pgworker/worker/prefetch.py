"""How far a worker claims ahead: about as much work as it does in `seconds`, judged by how long jobs took.

No-op jobs are claimed by the hundred, a ten-second job alone; and no more than some MiB of arguments at a time.
"""

from __future__ import annotations

_QUICKEST = 0.00005  # seconds: no estimate goes below it, or a run of no-ops would ask for thousands
_HEAVIEST = 32 * 2**20  # characters of arguments that are about to be held at a time
_TREND = 0.75  # how far an estimate falls towards what was just measured; it rises at once


class Prefetch:
    """The estimate of one worker. It begins with one job per slot at a time."""

    def __init__(self, seconds: float, max_batch: int, slots: int) -> None:
        self._seconds = seconds
        self._max_batch = max_batch
        self._slots = slots
        self.begin_anew()

    def begin_anew(self) -> None:
        """Know nothing."""
        self._mean = max(self._seconds, _QUICKEST)
        self._weight = 0.0

    def observe(self, jobs: int, seconds: float) -> None:
        """`jobs` of them took `seconds` together."""
        measured = max(_QUICKEST, seconds / jobs)
        if measured > self._mean:
            self._mean = measured
        else:
            self._mean += (measured - self._mean) * _TREND

    def weigh(self, jobs: int, characters: int) -> None:
        """The arguments of `jobs` that were claimed have so many characters together."""
        weight = characters / jobs
        self._weight = max(weight, self._weight + (weight - self._weight) * _TREND)

    @property
    def target(self) -> int:
        """How many jobs are about `seconds` of work for all slots; at least one each, at most two batches."""
        most = min(2 * self._max_batch, int(_HEAVIEST / max(1.0, self._weight)))
        return max(self._slots, min(most, int(self._seconds * self._slots / self._mean)))

    def wanted(self, waiting: int, free: int, since_last_start: float) -> int:
        """How many to claim now, with `waiting` claimed and not started, and so many free slots.

        What free slots would run at once, and ahead of them about `seconds` of work. Nothing is claimed ahead if a slot
        does less than two jobs in that time, or behind jobs that turn out long: it would only wait.
        """
        goal = free
        if self.target >= 2 * self._slots and (free or since_last_start <= self._seconds):
            goal = max(free, self.target)
        if goal == 0 or (waiting and waiting > goal // 2):
            return 0
        return max(0, min(self._max_batch, goal - waiting))
