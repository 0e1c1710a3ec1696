"""Heartbeats: which worker processes live, which tasks they serve, and how the others ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What the heartbeats of all workers of one pool have in common."""

    pool_id: UUID
    host: str
    boot_id: str
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker process: the place (`slot`) it has in its pool, and how long it has lived.

    `tasks_digest` is that of `announce_tasks`, 64 bits without a sign; 0: its app is not loaded yet.
    """

    worker_id: UUID
    pid: int
    slot: int
    age_us: int
    tasks_digest: int = 0


def beat_workers(connection: Connection[Any], pool: PoolIdentity, workers: Sequence[WorkerProcess]) -> None:
    """Say that these workers live, in one statement."""
    connection.execute(
        query("beat_workers"),
        {
            "pool_id": pool.pool_id,
            "host": pool.host,
            "boot_id": pool.boot_id,
            "queues": list(pool.queues),
            "worker_ids": [worker.worker_id for worker in workers],
            "pids": [worker.pid for worker in workers],
            "slots": [worker.slot for worker in workers],
            "ages_us": [worker.age_us for worker in workers],
            "tasks_digests": [_signed(worker.tasks_digest) if worker.tasks_digest else None for worker in workers],
        },
    )


def end_worker(connection: Connection[Any], pool: PoolIdentity, worker: WorkerProcess, how: str) -> None:
    """Record that a worker process has ended and how; its leases are free to reclaim from now on."""
    connection.execute(
        query("end_worker"),
        {
            "pool_id": pool.pool_id,
            "host": pool.host,
            "boot_id": pool.boot_id,
            "queues": list(pool.queues),
            "worker_id": worker.worker_id,
            "pid": worker.pid,
            "slot": worker.slot,
            "age_us": worker.age_us,
            "how": how,
        },
    )


def announce_tasks(connection: Connection[Any], digest: int, tasks: Sequence[str]) -> None:
    """Say which tasks those workers serve whose heartbeats show this digest; to be said at each connect."""
    connection.execute(query("announce_tasks"), {"digest": _signed(digest), "tasks": list(tasks)})


def forget_workers(connection: Connection[Any]) -> None:
    """Drop incarnations that ended long ago, and lists of tasks that nobody serves any more."""
    connection.execute(query("forget_workers"))
    connection.execute(query("forget_tasks"))


def _signed(digest: int) -> int:
    """The same 64 bits as PostgreSQL's bigint."""
    return digest - (1 << 64) if digest >= 1 << 63 else digest
