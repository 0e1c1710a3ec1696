"""Heartbeats: which worker processes live, which tasks they serve, and how the others ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from pgworker.model.retry import Backoff
from pgworker.model.state import WorkerState
from pgworker.sql.load import query

MAX_RUNS = 100
"""How many running jobs of one worker a heartbeat tells of."""


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What the heartbeats of all workers of one pool have in common. `pid_space`: where their pids mean something."""

    pool_id: UUID
    host: str
    pid_space: str
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that runs, by its place in a lease, positions from 1."""

    lease_id: UUID
    position: int
    age_us: int


@dataclass(frozen=True, slots=True)
class Activity:
    """What a worker process does, and what it has used so far; None: not known."""

    state: WorkerState | None = None
    runs: tuple[RunningJob, ...] = ()
    jobs_done: int = 0
    uss_bytes: int | None = None
    cpu_seconds: float | None = None

    @property
    def runs_as_json(self) -> Jsonb:
        """Those that have run for longest."""
        longest = sorted(self.runs, key=lambda run: -run.age_us)[:MAX_RUNS]
        return Jsonb([{"lease": str(run.lease_id), "position": run.position, "age_us": run.age_us} for run in longest])


_NOTHING = Activity()


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker process: its `number` in its pool, from 0, how long it has lived, and what it does.

    `tasks_digest` is that of `announce_tasks`, 64 bits without a sign; 0: its app is not loaded yet.
    """

    worker_id: UUID
    pid: int
    number: int
    age_us: int
    tasks_digest: int = 0
    activity: Activity = _NOTHING


@dataclass(frozen=True, slots=True)
class SilentWorker:
    """A worker of another pool whose pid is of our space, and its last beat by the server's clock."""

    worker_id: UUID
    pid: int
    number: int
    beat_at: datetime


def beat_workers(connection: Connection[Any], pool: PoolIdentity, workers: Sequence[WorkerProcess]) -> None:
    """Say that these workers live, and what they do, in one statement."""
    connection.execute(
        query("beat_workers"),
        {
            "pool_id": pool.pool_id,
            "host": pool.host,
            "pid_space": pool.pid_space,
            "queues": list(pool.queues),
            "worker_ids": [worker.worker_id for worker in workers],
            "pids": [worker.pid for worker in workers],
            "numbers": [worker.number for worker in workers],
            "ages_us": [worker.age_us for worker in workers],
            "tasks_digests": [_signed(worker.tasks_digest) if worker.tasks_digest else None for worker in workers],
            "states": [worker.activity.state and worker.activity.state.value for worker in workers],
            "runs": [worker.activity.runs_as_json for worker in workers],
            "jobs_done": [worker.activity.jobs_done for worker in workers],
            "uss_bytes": [worker.activity.uss_bytes for worker in workers],
            "cpu_seconds": [worker.activity.cpu_seconds for worker in workers],
        },
    )


def end_worker(connection: Connection[Any], pool: PoolIdentity, worker: WorkerProcess, how: str) -> None:
    """Record that a worker process has ended and how; its pool may take its leases from now on, others later."""
    connection.execute(
        query("end_worker"),
        {
            "pool_id": pool.pool_id,
            "host": pool.host,
            "pid_space": pool.pid_space,
            "queues": list(pool.queues),
            "worker_id": worker.worker_id,
            "pid": worker.pid,
            "number": worker.number,
            "age_us": worker.age_us,
            "how": how,
        },
    )


def find_silent_workers(connection: Connection[Any], pool: PoolIdentity, silence: float) -> list[SilentWorker]:
    """Workers of other pools on this host, with pids of our space, that have not been heard of for so many seconds."""
    parameters = {"pool_id": pool.pool_id, "host": pool.host, "pid_space": pool.pid_space, "silence": silence}
    return [SilentWorker(*row) for row in connection.execute(query("find_silent_workers"), parameters).fetchall()]


def end_silent_worker(connection: Connection[Any], worker: SilentWorker, how: str) -> bool:
    """Record that a silent worker has ended; its leases are free to reclaim from now on.

    False, and nothing recorded, if somebody was quicker, or it has been heard of since it was found.
    """
    parameters = {"worker_id": worker.worker_id, "beat_at": worker.beat_at, "how": how}
    return connection.execute(query("end_silent_worker"), parameters).fetchone() is not None


def announce_tasks(
    connection: Connection[Any],
    digest: int,
    tasks: Sequence[str],
    backoffs: Mapping[str, Backoff] | None = None,
) -> None:
    """Say which tasks those workers serve whose heartbeats show this digest; to be said at each connect.

    `backoffs`: of those among them that have one of their own, for whoever reclaims their jobs.
    """
    own = {task: [backoff.base, backoff.cap, backoff.jitter] for task, backoff in (backoffs or {}).items()}
    parameters = {"digest": _signed(digest), "tasks": list(tasks), "backoffs": Jsonb(own)}
    connection.execute(query("announce_tasks"), parameters)


def forget_workers(connection: Connection[Any]) -> None:
    """Drop incarnations that ended long ago, and lists of tasks that nobody serves any more."""
    connection.execute(query("forget_workers"))
    connection.execute(query("forget_tasks"))


def _signed(digest: int) -> int:
    """The same 64 bits as PostgreSQL's bigint."""
    return digest - (1 << 64) if digest >= 1 << 63 else digest
