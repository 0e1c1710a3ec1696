"""Claim: due jobs into a lease of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Cursor

from pgworker.db.arrays import number_array, text_array
from pgworker.linux.floors import FloorsSeen, Place
from pgworker.sql.load import query

PRIORITIES = tuple(range(9, -1, -1))
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_SERVERS_EPOCH_US = 946_684_800_000_000  # the year 2000, in microseconds of ours


class ClaimedRow(NamedTuple):
    """One claimed job as the database returns it. No `payload`: its row in jobs is missing.

    `waited`: seconds from when it was due (or enqueued, or its last execution ended, if that was later) to the begin of
    the claiming transaction. `suspicions`: so many of its executions until now, without a gap, ended with their worker,
    which perhaps died of this job; 1 at least if it was charged for one. The two times are as the server sends them.
    """

    job_id: UUID
    task: str
    payload: str | None
    execution: int
    failures: int
    run_at_sent: bytes
    queue: str
    priority: int
    org_id: str | None
    max_attempts: int | None
    timeout_ms: int | None
    headers: str | None
    created_at_sent: bytes | None
    checkpoint: str | None
    waited: float
    suspicions: int

    @property
    def run_at(self) -> datetime:
        return _moment(self.run_at_sent)

    @property
    def created_at(self) -> datetime | None:
        return None if self.created_at_sent is None else _moment(self.created_at_sent)

    @property
    def place(self) -> Place:
        """Where it was in its lane, as `floor_of` says it."""
        return _microseconds(self.run_at_sent), self.job_id.int >> 64


@dataclass(frozen=True, slots=True)
class Lanes:
    """The order in which a worker looks for work: its queues as given, in each the priorities from 9 down."""

    queues: tuple[str, ...]
    priorities: tuple[int, ...]

    @classmethod
    def of(cls, queues: Sequence[str]) -> Lanes:
        pairs = [(queue, priority) for queue in queues for priority in PRIORITIES]
        return cls(tuple(queue for queue, _ in pairs), tuple(priority for _, priority in pairs))

    def index(self, queue: str, priority: int) -> int | None:
        """The lane of this queue and priority; None when it isn't served here."""
        try:
            return self.queues.index(queue) + (9 - priority)
        except ValueError:
            return None

    def __len__(self) -> int:
        return len(self.queues)


def floor_of(run_at: datetime, job_id: UUID) -> Place:
    """A place in a lane, as the board keeps it: microseconds of the epoch, time half of the id."""
    return (run_at - _EPOCH) // _MICROSECOND, job_id.int >> 64


def claimed_rows(cursor: Cursor[Any]) -> list[ClaimedRow]:
    """Read the answer of `claim_jobs` or `claim_job`."""
    return [*map(ClaimedRow._make, cursor.fetchall())]


def claim_jobs(
    cursor: Cursor[Any],
    *,
    lease_id: UUID,
    worker_id: UUID,
    ttl: float,
    slots: int,
    jobs: int,
    tasks: list[str],
    lanes: Lanes,
    floors: FloorsSeen,
    is_durable: bool = True,
) -> None:
    """Send a claim of up to `jobs` jobs on a ClaimingCursor; its rows come in run order. `ttl` in seconds. If not
    `is_durable`, the commit of what it takes does not wait for the disk.

    Fit for large tables in `one_trip`, or `by_index`.
    """
    parameters = {
        "lease_id": lease_id,
        "worker_id": worker_id,
        "ttl": ttl,
        "slots": slots,
        "jobs": jobs,
        "commit": None if is_durable else "off",
        **_where(tasks, lanes, floors),
    }
    cursor.execute(query("claim_jobs"), parameters)


def claim_job(
    cursor: Cursor[Any],
    job_id: UUID,
    *,
    lease_id: UUID,
    worker_id: UUID,
    ttl: float,
    tasks: list[str],
    even_paused: bool,
) -> None:
    """Send a claim of this job, due or not, as `claim_jobs` does. No row: it does not wait, or its queue is paused."""
    parameters = {
        "job_id": job_id,
        "lease_id": lease_id,
        "worker_id": worker_id,
        "ttl": ttl,
        "tasks": tasks,
        "even_paused": even_paused,
    }
    cursor.execute(query("claim_job"), parameters)


def find_below_floor(
    cursor: Cursor[Any],
    *,
    tasks: list[str],
    lanes: Lanes,
    floors: FloorsSeen,
    reach: float | None,
) -> list[tuple[int, Place]]:
    """Due jobs below the floors, the first of each lane, as (lane, its place).

    `reach` bounds the look to so many seconds below each floor; None looks from the very beginning. Planned as a claim.
    """
    reach_us = None if reach is None else round(reach * 1_000_000)
    parameters = {
        **_where(tasks, lanes, floors),
        "from_us": number_array(0 if reach_us is None else max(0, floor - reach_us) for floor in floors.run_at_us),
    }
    rows = cursor.execute(query("find_below_floor"), parameters).fetchall()
    found = []
    for queue, priority, run_at, job_id in rows:
        lane = lanes.index(queue, priority)
        if lane is not None:
            found.append((lane, floor_of(run_at, job_id)))
    return found


def find_dry_lanes(
    cursor: Cursor[Any], *, tasks: list[str], lanes: Lanes, floors: FloorsSeen, margin: float
) -> list[tuple[int, Place]]:
    """Lanes with no job of ours between their floor and `margin` seconds ago, and that place, to which it may rise.

    Planned as a claim.
    """
    parameters = {
        **_where(tasks, lanes, floors),
        "margin": margin,
    }
    rows = cursor.execute(query("find_dry_lanes"), parameters).fetchall()
    found = []
    for queue, priority, at in rows:
        lane = lanes.index(queue, priority)
        if lane is not None:
            found.append((lane, ((at - _EPOCH) // _MICROSECOND, 0)))
    return found


def _moment(sent: bytes) -> datetime:
    return _EPOCH + _microseconds(sent) * _MICROSECOND


def _microseconds(sent: bytes) -> int:
    """Of the epoch, of what the server sends as a time: its own microseconds, signed, in eight bytes."""
    return int.from_bytes(sent, "big", signed=True) + _SERVERS_EPOCH_US


def _where(tasks: list[str], lanes: Lanes, floors: FloorsSeen) -> dict[str, Any]:
    """What every look into job_queue is told: which tasks, in which lanes, from where."""
    return {
        "tasks": text_array(tasks),
        "lane_queues": text_array(lanes.queues),
        "lane_priorities": number_array(lanes.priorities),
        "floor_us": number_array(floors.run_at_us),
        "floor_ids": number_array(floors.id_halves),
    }
