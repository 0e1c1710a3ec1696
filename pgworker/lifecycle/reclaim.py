"""Reclaim: what a dead or silent worker held goes back, each job by what is known of it.

One lease per transaction, so that one bad row blocks nothing else; taken by one statement, its jobs sent on by another,
so that the second one's snapshot shows everything that the lease had settled before it was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from psycopg import Connection

from pgworker.db.plan import by_index
from pgworker.lifecycle.progress import forget_progress
from pgworker.lifecycle.transaction import read_committed
from pgworker.model.retry import Backoff
from pgworker.model.state import Outcome
from pgworker.sql.load import query

SUSPECT = "pgworker.suspect"
"""The type of the error of an execution that was spared: pgworker.is_suspect() knows it by that."""


@dataclass(frozen=True, slots=True)
class Reclaimable:
    """A lease to reclaim: its worker has ended (`ended_how`), or only its time is over."""

    lease_id: UUID
    worker_id: UUID
    slots: int
    ended_how: str | None
    only_expired: bool


@dataclass(frozen=True, slots=True)
class TakenLease:
    """A lease that was deleted by us, a moment before its jobs go back."""

    worker_id: UUID
    slots: int
    job_ids: list[UUID]
    executions: list[int]
    failures: list[int]
    cancelled: list[UUID]


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known about the positions of a lease whose worker is gone.

    `outcomes` and `started_us` (µs ago) have one entry per position, None: never started. `assumed_running` is for a
    lease nobody could look into: so many of its first unfinished positions count as running.
    `suspects`: how many jobs ran when the worker died. Of more than one nobody knows which it died of: those that would
    be `crashed` are `lost`, uncharged. Charged all the same is who was spared in its execution before, if nobody could
    look into this lease; and if it `had_ended`, with nothing begun since, when its worker died of itself.
    """

    outcomes: Sequence[Outcome | None]
    started_us: Sequence[int | None]
    cause: str
    assumed_running: int = 0
    error: str | None = None
    suspects: int = 1
    had_ended: bool = False


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What became of one job. No `outcome`: it had never started. `started_us`: that long ago, if anybody knows."""

    job_id: UUID
    execution: int
    outcome: Outcome | None
    failures: int
    task: str | None
    queue: str | None
    priority: int | None
    run_at: datetime | None
    is_dead: bool
    org_id: str | None = None
    started_us: int | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class ReclaimedLease:
    lease_id: UUID
    worker_id: UUID
    jobs: list[Reclaimed]


def find_reclaimable(
    connection: Connection[Any],
    *,
    by_expiry: bool,
    pool_id: UUID,
    silence: float,
    patience: float,
    until: datetime | None = None,
    others_until: datetime | None = None,
) -> list[Reclaimable]:
    """Leases of workers that have ended and, if `by_expiry`, those whose time is over.

    By expiry only our own pool's, and those of workers that have not been heard of for `silence` seconds; and only
    until the database's clock shows `until`: later than that it was set forward. Of other pools' workers that have
    ended only those of which the last was heard `patience` seconds ago: their own pool knows better. These until
    `others_until`, likewise; None: not at all.
    """
    parameters = {
        "by_expiry": by_expiry,
        "pool_id": pool_id,
        "silence": silence,
        "patience": patience,
        "until": until,
        "others_until": others_until,
    }
    rows = connection.execute(query("find_reclaimable_leases"), parameters).fetchall()
    return [Reclaimable(*row) for row in rows]


def reclaim_lease(
    connection: Connection[Any],
    lease: Reclaimable,
    look: Callable[[TakenLease], Findings],
    backoff: Backoff,
    until: datetime | None = None,
) -> ReclaimedLease | None:
    """Take one lease and send its jobs on. None: somebody else has it, or it is in use after all.

    `look` is asked, with the lease in hand, what is known of its positions. One that is only expired is taken until the
    database's clock shows `until`. Always at READ COMMITTED: at a higher level the second statement would not see what
    the lease had settled, and run finished jobs again.
    """
    with read_committed(connection) as cursor:
        row = cursor.execute(
            query("take_lease"), {"lease_id": lease.lease_id, "only_expired": lease.only_expired, "until": until}
        ).fetchone()
        if row is None:
            return None
        taken = TakenLease(*row)
        findings = look(taken)
        with by_index(connection):
            jobs = _send_on(cursor, lease.lease_id, taken, findings, backoff)
            forget_progress(connection, taken.job_ids)
    return ReclaimedLease(lease.lease_id, taken.worker_id, jobs)


def _send_on(cursor: Any, lease_id: UUID, taken: TakenLease, findings: Findings, backoff: Backoff) -> list[Reclaimed]:
    rows = cursor.execute(
        query("reclaim_jobs"),
        {
            "lease_id": lease_id,
            "worker_id": taken.worker_id,
            "job_ids": taken.job_ids,
            "executions": taken.executions,
            "failures": taken.failures,
            "cancelled": taken.cancelled,
            "outcomes": [None if outcome is None else outcome.value for outcome in findings.outcomes],
            "started_us": list(findings.started_us),
            "assumed_running": findings.assumed_running,
            "error": findings.error,
            "cause": findings.cause,
            "suspects": findings.suspects,
            "had_ended": findings.had_ended,
            **_of_suspects(findings),
            "backoff_base": backoff.base,
            "backoff_cap": backoff.cap,
            "backoff_jitter": backoff.jitter,
        },
    ).fetchall()
    return [
        Reclaimed(job_id, execution, None if outcome is None else Outcome(outcome), *rest)
        for job_id, execution, outcome, *rest in rows
    ]


def _of_suspects(findings: Findings) -> dict[str, str]:
    """What is said of jobs that may have had nothing to do with the end of their worker."""
    many = "one of up to" if findings.assumed_running else "one of"
    ran = f"{many} {findings.suspects} jobs that ran in a worker which died, nobody can tell of which"
    if findings.had_ended:
        ran = "its handler had ended, and nothing else had begun, when the worker died"
    spared = f"{ran}: {findings.cause}"
    error = {"traceback": "", **msgspec.json.decode(findings.error or "{}"), "type": SUSPECT, "message": spared}
    return {
        "cause_spared": spared,
        "cause_again": f"{ran}, as the worker of its last execution did: {findings.cause}",
        "error_spared": msgspec.json.encode(error).decode(),
    }
