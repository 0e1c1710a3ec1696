"""How fast workers are: from the counters in their heartbeats, of which there is one every five seconds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pgworker.inspection.workers import WorkerRow

WINDOW = 12.0
"""Seconds over which a rate is taken: two or three heartbeats."""

_LEAST = 2.0  # seconds between two heartbeats that a rate is taken of
_SAME = 0.2  # seconds by which the same heartbeat may seem to move between two looks


@dataclass(frozen=True, slots=True)
class WorkerRate:
    """What a worker has done lately: executions ended per second, and CPU time per second, 1.0 for a whole CPU."""

    ended: float
    cpu: float | None


@dataclass(frozen=True, slots=True)
class _Beat:
    at: float
    jobs_done: int
    cpu_seconds: float | None


class Rates:
    """Remembers the last heartbeats of every worker, from one look to the next."""

    def __init__(self) -> None:
        self._beats: dict[UUID, list[_Beat]] = {}

    def update(self, now: datetime, workers: Sequence[WorkerRow]) -> Mapping[UUID, WorkerRate]:
        """The rates as of this look, `now` by the database's clock. A worker has none before its second heartbeat, and
        none while it is silent."""
        self._beats = {worker.worker_id: self._with(now, worker) for worker in workers}
        found = {worker.worker_id: _rate(self._beats[worker.worker_id]) for worker in workers if not worker.is_silent}
        return {worker_id: rate for worker_id, rate in found.items() if rate is not None}

    def _with(self, now: datetime, worker: WorkerRow) -> list[_Beat]:
        beat = _Beat(now.timestamp() - worker.beat_age, worker.jobs_done, worker.cpu_seconds)
        known = self._beats.get(worker.worker_id, [])
        if known and beat.at - known[-1].at < _SAME:
            return known
        return [before for before in known if beat.at - before.at <= WINDOW] + [beat]


def _rate(beats: Sequence[_Beat]) -> WorkerRate | None:
    first, last = beats[0], beats[-1]
    seconds = last.at - first.at
    if seconds < _LEAST:
        return None
    cpu = None
    if first.cpu_seconds is not None and last.cpu_seconds is not None:
        cpu = max(0.0, last.cpu_seconds - first.cpu_seconds) / seconds
    return WorkerRate(max(0, last.jobs_done - first.jobs_done) / seconds, cpu)
