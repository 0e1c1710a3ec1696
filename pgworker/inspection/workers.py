"""Workers: which hosts have some, what each does, and which of them have gone silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.inspection.snapshot import snapshot
from pgworker.sql.load import query

SILENT_AFTER = 15.0
"""Seconds without a beat, of which there is one every 5."""

MAX_HOSTS = 100


@dataclass(frozen=True, slots=True)
class HostWorkers:
    """The worker processes of one host that have not ended; `last_beat` is in seconds ago."""

    host: str
    alive: int
    silent: int
    last_beat: float


@dataclass(frozen=True, slots=True)
class WorkerRun:
    """A job that ran in a worker at its last beat, and still holds its lease; `seconds`: for how long by now."""

    job_id: UUID
    task: str
    queue: str
    execution: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process that has not ended, as of its last beat, which was `beat_age` seconds ago.

    `number` is its own in its pool, from 0. `state`: a `WorkerState`; None, like the rest, when it has not said.
    `uss_bytes` is what it shares with no other process, `jobs_done` the executions that it has ended.
    """

    worker_id: UUID
    pool_id: UUID
    host: str
    number: int
    pid: int
    state: str | None
    queues: list[str]
    started_at: datetime
    beat_age: float
    jobs_done: int
    uss_bytes: int | None
    cpu_seconds: float | None
    runs: tuple[WorkerRun, ...]

    @property
    def is_silent(self) -> bool:
        return self.beat_age > SILENT_AFTER


def list_workers(connection: Connection[Any], *, limit: int = 1000) -> list[WorkerRow]:
    """The first workers by host, pool and number; those without a beat for a day are left out."""
    with snapshot(connection):
        rows = connection.execute(query("list_workers"), {"limit": limit}).fetchall()
    return [_worker(row) for row in rows]


def count_workers(connection: Connection[Any]) -> list[HostWorkers]:
    """The first 100 hosts by name; those without a beat for a day are left out."""
    rows = connection.execute(query("count_workers"), {"silent_after": SILENT_AFTER, "limit": MAX_HOSTS}).fetchall()
    return [HostWorkers(*row) for row in rows]


def _worker(row: Sequence[Any]) -> WorkerRow:
    runs = tuple(WorkerRun(*run) for run in zip(*row[-5:], strict=True))
    return WorkerRow(*(*row[:-5], runs))
