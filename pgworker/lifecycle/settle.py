"""Settle: executions end, by position in their lease, and their jobs with them or back to the queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncCursor, Cursor

from pgworker.db.arrays import moment_array, number_array
from pgworker.model.state import Outcome
from pgworker.sql.load import query


class Next(int, Enum):
    """What becomes of a job after an execution."""

    END = 0
    REQUEUE = 1
    BURY = 2


class Ended(msgspec.Struct, gc=False):
    """One ended execution. Times: nanoseconds of the monotonic clock. A requeued job is due at `run_at`, by the
    database's clock, or if that is None after `delay` seconds."""

    # One is made for each job: a struct takes a third of the time of a dataclass, and nothing in it leads back to it.
    job_id: UUID
    execution: int
    started_ns: int
    finished_ns: int
    outcome: Outcome = Outcome.SUCCEEDED
    next: Next = Next.END
    delay: float = 0.0
    error: str | None = None
    result: str | None = None
    run_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """Positions `first`.. of one lease that have ended, and whether the lease ends with them.

    None in `ended` leaves a position as it is: its job still runs, or its own transaction has recorded it. `ended` may
    be empty when the lease ends. `is_repeated`: an answer was lost, so some of it may be on record, and stays as it is.
    `server`: the start of the one that the lease was claimed from, the only one that may end it; None: any may.
    """

    lease_id: UUID
    first: int
    ended: Sequence[Ended | None]
    ends_lease: bool
    is_repeated: bool = False
    server: datetime | None = None

    @property
    def last(self) -> int:
        return self.first + len(self.ended) - 1

    @property
    def executions(self) -> list[Ended]:
        """Those that are to be recorded."""
        return [run for run in self.ended if run is not None]


def settle_jobs(cursor: Cursor[Any], settlement: Settlement, now_ns: int) -> None:
    """Send one settlement; `is_settled` reads its answer. Durations travel as "µs ago", counted from `now_ns`.

    Fit for large tables in `one_trip`, or `by_index`.
    """
    cursor.execute(query("settle_jobs"), _parameters(settlement, now_ns))


def settle_success(cursor: Cursor[Any], settlement: Settlement, now_ns: int, commit_within_ms: int) -> bool:
    """As `settle_jobs` and `is_settled` together, for an execution that succeeded in its own transaction.

    Its COMMIT is to follow within `commit_within_ms`, or the server rolls back: should this process be stopped before
    it, nobody could take its lease until then.
    """
    cursor.execute(query("settle_jobs"), _parameters(settlement, now_ns, commit_within_ms))
    return is_settled(cursor, settlement)


async def settle_success_async(
    cursor: AsyncCursor[Any], settlement: Settlement, now_ns: int, commit_within_ms: int
) -> bool:
    """As `settle_success`."""
    await cursor.execute(query("settle_jobs"), _parameters(settlement, now_ns, commit_within_ms))
    return _is_complete(await cursor.fetchall(), settlement)


def is_settled(cursor: Cursor[Any], settlement: Settlement) -> bool:
    """Read the answer of `settle_jobs`: whether every position was recorded just now.

    False is not yet a verdict: a settlement that is sent again finds its rows there already. See `find_unsettled`.
    """
    return _is_complete(cursor.fetchall(), settlement)


def find_unsettled(cursor: Cursor[Any], settlement: Settlement) -> list[Ended]:
    """After `is_settled` said no: those that this very lease has not recorded before, either: it is gone."""
    return _unsettled(cursor.execute(query("find_own_executions"), _executions(settlement)).fetchall(), settlement)


async def find_unsettled_async(cursor: AsyncCursor[Any], settlement: Settlement) -> list[Ended]:
    """As `find_unsettled`."""
    await cursor.execute(query("find_own_executions"), _executions(settlement))
    return _unsettled(await cursor.fetchall(), settlement)


def _is_complete(rows: Sequence[tuple[Any, ...]], settlement: Settlement) -> bool:
    leases, recorded, _ = rows[0]
    asked = len(settlement.executions)
    return bool(recorded == asked and (leases == 1 or not asked))


def _executions(settlement: Settlement) -> dict[str, Any]:
    return {
        "lease_id": settlement.lease_id,
        "job_ids": [run.job_id for run in settlement.executions],
        "executions": [run.execution for run in settlement.executions],
    }


def _unsettled(rows: Sequence[tuple[Any, ...]], settlement: Settlement) -> list[Ended]:
    own = {job_id for (job_id,) in rows}
    return [run for run in settlement.executions if run.job_id not in own]


def _parameters(settlement: Settlement, now_ns: int, commit_within_ms: int | None = None) -> dict[str, Any]:
    ended = settlement.ended
    results = [None if run is None else run.result for run in ended]
    parameters: dict[str, Any] = {
        "lease_id": settlement.lease_id,
        "first": settlement.first,
        "last": settlement.last,
        "ends_lease": settlement.ends_lease,
        "is_repeated": settlement.is_repeated,
        "server": settlement.server,
        "commit_within_ms": commit_within_ms,
        "started_us": number_array([None if run is None else (now_ns - run.started_ns) // 1000 for run in ended]),
        "finished_us": number_array([None if run is None else (now_ns - run.finished_ns) // 1000 for run in ended]),
        "results": results if any(result is not None for result in results) else None,
    }
    if all(run is None or run.outcome is Outcome.SUCCEEDED for run in ended):
        return parameters | dict.fromkeys(("outcomes", "charges", "nexts", "delays_ms", "run_ats", "errors"))
    return parameters | {
        "outcomes": [None if run is None else run.outcome.value for run in ended],
        "charges": number_array(None if run is None else int(run.outcome.is_charged) for run in ended),
        "nexts": number_array(None if run is None else run.next.value for run in ended),
        "run_ats": moment_array(None if run is None else run.run_at for run in ended),
        "delays_ms": number_array(None if run is None else round(run.delay * 1000) for run in ended),
        "errors": [None if run is None else run.error for run in ended],
    }
