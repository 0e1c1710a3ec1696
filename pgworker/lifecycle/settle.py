"""Settle: executions end, by position in their lease, and their jobs with them or back to the queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Cursor

from pgworker.db.plan import by_index
from pgworker.errors import LeaseLost
from pgworker.model.state import Outcome
from pgworker.sql.load import query


class Next(int, Enum):
    """What becomes of a job after an execution."""

    END = 0
    REQUEUE = 1
    BURY = 2


class Ended(NamedTuple):
    """One ended execution. Times: nanoseconds of the monotonic clock; `delay`: seconds until a requeued job is due."""

    job_id: UUID
    execution: int
    started_ns: int
    finished_ns: int
    outcome: Outcome = Outcome.SUCCEEDED
    next: Next = Next.END
    delay: float = 0.0
    error: str | None = None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """Positions `first`.. of one lease that have ended, and whether the lease ends with them.

    `ended` may be empty when the lease ends: its last position was settled by the handler's own transaction.
    """

    lease_id: UUID
    first: int
    ended: Sequence[Ended]
    ends_lease: bool

    @property
    def last(self) -> int:
        return self.first + len(self.ended) - 1


def settle_jobs(cursor: Cursor[Any], settlement: Settlement, now_ns: int) -> None:
    """Send one settlement; `check_settled` reads its answer. Durations travel as "µs ago", counted from `now_ns`."""
    ended = settlement.ended
    parameters: dict[str, Any] = {
        "lease_id": settlement.lease_id,
        "first": settlement.first,
        "last": settlement.last,
        "ends_lease": settlement.ends_lease,
        "started_us": _array((now_ns - run.started_ns) // 1000 for run in ended),
        "finished_us": _array((now_ns - run.finished_ns) // 1000 for run in ended),
        "results": [run.result for run in ended] if any(run.result is not None for run in ended) else None,
    }
    if all(run.outcome is Outcome.SUCCEEDED for run in ended):
        parameters |= dict.fromkeys(("outcomes", "charges", "nexts", "delays_ms", "errors"))
    else:
        parameters |= {
            "outcomes": [run.outcome.value for run in ended],
            "charges": _array(int(run.outcome.is_charged) for run in ended),
            "nexts": _array(run.next.value for run in ended),
            "delays_ms": _array(round(run.delay * 1000) for run in ended),
            "errors": [run.error for run in ended],
        }
    looks_up_jobs = any(run.next is not Next.END for run in ended)
    with by_index(cursor.connection) if looks_up_jobs else nullcontext():
        cursor.execute(query("settle_jobs"), parameters)


def is_settled(cursor: Cursor[Any], settlement: Settlement) -> bool:
    """Read the answer of `settle_jobs`: whether every position was recorded just now.

    False is not yet a verdict: a settlement that is sent again finds its rows there already. See `check_settled`.
    """
    leases, recorded = cursor.fetchall()[0]
    return recorded == len(settlement.ended) and (leases == 1 or not settlement.ended)


def check_settled(cursor: Cursor[Any], settlement: Settlement) -> None:
    """After `is_settled` said no: return if this very lease has recorded them all before, else raise LeaseLost."""
    rows = cursor.execute(
        query("find_own_executions"),
        {
            "lease_id": settlement.lease_id,
            "job_ids": [run.job_id for run in settlement.ended],
            "executions": [run.execution for run in settlement.ended],
        },
    ).fetchall()
    missing = len(settlement.ended) - rows[0][0]
    if missing:
        raise LeaseLost(
            f"the lease {settlement.lease_id} is gone: {missing} of {len(settlement.ended)} results were not recorded; "
            "their jobs were given to another worker"
        )


def _array(numbers: Iterable[int]) -> str:
    """As PostgreSQL spells an array. The driver would choose the smallest integer type that holds them all, and with it
    another prepared statement for almost every call."""
    return "{" + ",".join(map(str, numbers)) + "}"
