"""Queues: how much waits in each, at a cost that doesn't grow with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pgworker.inspection.snapshot import snapshot
from pgworker.sql.load import query

COUNT_CAP = 10_000
MAX_QUEUES = 100


@dataclass(frozen=True, slots=True)
class Count:
    """A number that counting may have stopped at: then there are `number` or more."""

    number: int
    is_more: bool = False


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Jobs of one queue; `failed` ones wait to run again. `oldest`: seconds for which the first due one has waited."""

    queue: str
    paused: bool
    waiting: Count
    scheduled: Count
    running: Count
    failed: Count
    oldest: float | None


def count_queues(connection: Connection[Any], *, cap: int = COUNT_CAP) -> list[QueueCounts]:
    """The first 100 queues that hold jobs or have rules, by name. Counting stops at `cap`, earlier for many queues."""
    with snapshot(connection):
        rows = connection.execute(query("count_queues"), {"cap": cap, "queues": MAX_QUEUES}).fetchall()
    return [_counts(*row) for row in rows]


def _counts(
    queue: str,
    paused: bool,
    due: int,
    due_failed: int,
    more_due: bool,
    ahead: int,
    ahead_failed: int,
    more_ahead: bool,
    claimed: int,
    more_claimed: bool,
    oldest: float | None,
) -> QueueCounts:
    return QueueCounts(
        queue=queue,
        paused=paused,
        waiting=Count(max(0, due - due_failed), more_due),
        scheduled=Count(max(0, ahead - ahead_failed), more_ahead),
        running=Count(claimed, more_claimed),
        failed=Count(due_failed + ahead_failed, more_due or more_ahead),
        oldest=oldest,
    )
