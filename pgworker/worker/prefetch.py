"""How far a worker claims ahead: about as much work as it does in `seconds`, judged by how long jobs took.

No-op jobs are claimed by the hundred, a ten-second job alone.
"""

from __future__ import annotations

_QUICKEST = 0.00005  # seconds: no estimate goes below it, or a run of no-ops would ask for thousands
_TREND = 0.75  # how far an estimate falls towards what was just measured; it rises at once


class Prefetch:
    """The estimate of one worker. It begins with one job at a time."""

    def __init__(self, seconds: float, max_batch: int) -> None:
        self._seconds = seconds
        self._max_batch = max_batch
        self._mean = max(seconds, _QUICKEST)

    def observe(self, jobs: int, seconds: float) -> None:
        """`jobs` of them took `seconds` together."""
        measured = max(_QUICKEST, seconds / jobs)
        if measured > self._mean:
            self._mean = measured
        else:
            self._mean += (measured - self._mean) * _TREND

    @property
    def target(self) -> int:
        """How many jobs are about `seconds` of work; at least 1, at most two batches."""
        return max(1, min(2 * self._max_batch, int(self._seconds / self._mean)))

    def wanted(self, waiting: int, running_for: float | None) -> int:
        """How many to claim now, with `waiting` claimed and not started, and a job that has run for so many seconds.

        `running_for` None: nothing runs. Behind a job that turns out long nothing is claimed: it would only wait.
        """
        target = self.target
        if running_for is not None and (target == 1 or running_for > self._seconds):
            return 0
        if waiting and waiting > target // 2:
            return 0
        return min(self._max_batch, target - waiting)
