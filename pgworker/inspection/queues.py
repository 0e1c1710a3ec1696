"""Queues: how much waits in each, at a cost that doesn't grow with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import Connection

from pgworker.inspection.snapshot import go_by_index, snapshot
from pgworker.inspection.workers import SILENT_AFTER
from pgworker.model.selection import JobFilter
from pgworker.sql.load import query

COUNT_CAP = 10_000
MAX_QUEUES = 100

UNSERVED_CAP = 1000
"""How far into each lane, one priority of one queue, we look for jobs that nobody serves."""

_MOST_UNSERVED = 1000
_LATEST = 10_000
_MAX_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class Count:
    """A number that counting may have stopped at: then there are `number` or more."""

    number: int
    is_more: bool = False

    def __str__(self) -> str:
        """With a + where counting has stopped."""
        return f"{self.number}+" if self.is_more else str(self.number)

    @classmethod
    def total(cls, counts: Iterable[Count]) -> Count:
        """Of all of them together."""
        seen = list(counts)
        return cls(sum(count.number for count in seen), any(count.is_more for count in seen))


@dataclass(frozen=True, slots=True)
class Unserved:
    """Due jobs of one task that no living worker will take. `is_queue_served`: some worker has other tasks there."""

    queue: str
    task: str
    jobs: Count
    is_queue_served: bool


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Jobs of one queue; `failed` ones wait to run again. `oldest`: seconds for which the first due one has waited.

    `unserved` has the tasks of those that no living worker will take.
    """

    queue: str
    paused: bool
    waiting: Count
    scheduled: Count
    running: Count
    failed: Count
    oldest: float | None
    unserved: tuple[Unserved, ...] = ()

    @property
    def unserved_jobs(self) -> Count:
        """How many of the waiting and failed ones nobody will take."""
        return Count.total(one.jobs for one in self.unserved)


def count_queues(connection: Connection[Any], *, cap: int = COUNT_CAP) -> list[QueueCounts]:
    """The first 100 queues that hold jobs or have rules, by name. Counting stops at `cap`, earlier for many queues."""
    with snapshot(connection):
        return with_unserved(count_jobs(connection, cap=cap, total=2 * cap), find_unserved(connection))


def count_jobs(connection: Connection[Any], *, cap: int, total: int) -> list[QueueCounts]:
    """As `count_queues`, but for what nobody serves.

    Counting stops at `cap` for a queue, earlier if all queues together might have more than `total`.
    """
    parameters = {"cap": cap, "total": total, "queues": MAX_QUEUES}
    with snapshot(connection):
        rows = connection.execute(query("count_queues"), parameters, prepare=False).fetchall()
    return [_counts(*row) for row in rows]


def find_unserved(connection: Connection[Any]) -> list[Unserved]:
    """What waits though no living worker will take it, in the first 100 queues, the tasks with most jobs first."""
    parameters = {
        "max_queues": MAX_QUEUES,
        "cap": UNSERVED_CAP,
        "silent_after": SILENT_AFTER,
        "limit": _MOST_UNSERVED,
    }
    with snapshot(connection):
        go_by_index(connection)
        rows = connection.execute(query("find_unserved_jobs"), parameters, prepare=False).fetchall()
    return [Unserved(queue, task, Count(jobs, is_more), is_served) for queue, task, jobs, is_more, is_served in rows]


def with_unserved(counted: Sequence[QueueCounts], unserved: Sequence[Unserved]) -> list[QueueCounts]:
    """Each with the tasks of its own that nobody serves."""
    return [replace(one, unserved=tuple(jobs for jobs in unserved if jobs.queue == one.queue)) for one in counted]


def count_matching(connection: Connection[Any], chosen: JobFilter) -> tuple[int, int]:
    """How many jobs that match wait, and how many are claimed by a worker."""
    parameters = {**chosen.parameters(), "waiting": chosen.waiting, "running": chosen.running}
    with snapshot(connection):
        row = connection.execute(query("count_matching_jobs"), parameters, prepare=False).fetchall()[0]
    return row[0], row[1]


def find_queues(connection: Connection[Any]) -> list[str]:
    """Queues in use, by name: jobs wait in them or are among the latest, or a worker of the last days serves them."""
    with snapshot(connection):
        rows = connection.execute(query("find_queues"), {"limit": _MAX_NAMES, "latest": _LATEST}).fetchall()
    return [row[0] for row in rows]


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
