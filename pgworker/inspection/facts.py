"""All that bears on why a job doesn't run: the job itself, its queue, who serves it, and what comes before it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.inspection.dead_letters import DeadLetterDetail, find_dead_letter
from pgworker.inspection.jobs import ClaimRecord, JobDetail, JobRecord, read_job
from pgworker.inspection.queues import COUNT_CAP, Count
from pgworker.inspection.snapshot import go_by_index, snapshot
from pgworker.inspection.workers import SILENT_AFTER
from pgworker.model.state import WAITING, WorkerState
from pgworker.sql.load import query

_MOST_GROUPS = 1000
_NONE = Count(0)
_LAST_ID = UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True)
class Servers:
    """Worker processes of one pool, or several, that serve the same queues and tasks, as of their last beats.

    `queues` in their order, in which they are served strictly. No `tasks`: they have not said yet. `states`: how many
    of those that are not silent do what; `least_silence`: seconds since the last beat of any.
    """

    queues: tuple[str, ...]
    tasks: frozenset[str] | None
    silent: int
    least_silence: float
    states: dict[WorkerState, int]

    @property
    def alive(self) -> int:
        return sum(self.states.values())

    def serves(self, queue: str, task: str | None = None) -> bool:
        """Whether they take jobs of this queue and, if one is named, of this task."""
        return queue in self.queues and (task is None or self.tasks is None or task in self.tasks)


@dataclass(frozen=True, slots=True)
class LastEnd:
    """The last worker of a queue that has ended: `seconds` ago, and how, in words."""

    seconds: float
    how: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What was true of one job at one moment, `detail.job.seen_at`.

    `paused_for`: seconds since its queue was paused, None: it is not. `line`: the jobs before it in its lease that have
    not ended. `servers` are all workers there are; `ahead`, for a job that waits, are the due ones that a worker of its
    queue takes before it. `dead`: the record of a job that was given up. `last_end`: of its queue, if no living worker
    serves that.
    """

    detail: JobDetail
    paused_for: float | None = None
    line: tuple[UUID, ...] = ()
    servers: tuple[Servers, ...] = ()
    ahead: Count = _NONE
    dead: DeadLetterDetail | None = None
    last_end: LastEnd | None = None


def read_facts(connection: Connection[Any], job_id: UUID, *, executions: int = 1) -> Facts:
    """All of it in one snapshot, at a cost that doesn't grow with what waits. Raises JobNotFound."""
    with snapshot(connection):
        detail = read_job(connection, job_id, executions=executions)
        if detail.claim is not None:
            return Facts(detail, line=_line(connection, detail.claim), servers=_servers(connection))
        if detail.job.status == "dead_letter":
            return Facts(detail, dead=find_dead_letter(connection, job_id))
        if detail.job.status not in WAITING:
            return Facts(detail)
        servers = _servers(connection)
        pauses = _pauses(connection, {detail.job.queue, *(queue for one in servers for queue in one.queues)})
        ahead = _ahead(connection, detail.job, servers, pauses.keys())
        is_served = any(one.alive and one.serves(detail.job.queue) for one in servers)
        last_end = None if is_served else _last_end(connection, detail.job.queue)
    return Facts(detail, pauses.get(detail.job.queue), servers=servers, ahead=ahead, last_end=last_end)


def _line(connection: Connection[Any], claim: ClaimRecord) -> tuple[UUID, ...]:
    parameters = {"lease_id": claim.lease_id, "position": claim.position}
    return tuple(row[0] for row in connection.execute(query("find_line"), parameters).fetchall())


def _servers(connection: Connection[Any]) -> tuple[Servers, ...]:
    parameters = {"silent_after": SILENT_AFTER, "limit": _MOST_GROUPS}
    rows = connection.execute(query("find_servers"), parameters).fetchall()
    return tuple(
        Servers(
            tuple(queues),
            None if tasks is None else frozenset(tasks),
            silent,
            least_silence,
            {state: count for state, count in zip(WorkerState, counts, strict=True) if count},
        )
        for queues, tasks, silent, least_silence, *counts in rows
    )


def _last_end(connection: Connection[Any], queue: str) -> LastEnd | None:
    row = connection.execute(query("find_last_end"), {"queue": queue}).fetchone()
    return None if row is None else LastEnd(*row)


def _pauses(connection: Connection[Any], names: Collection[str]) -> dict[str, float]:
    return dict(connection.execute(query("find_pauses"), {"names": list(names)}).fetchall())


def _ahead(connection: Connection[Any], job: JobRecord, servers: Sequence[Servers], paused: Collection[str]) -> Count:
    """Of the queues that all who serve the job serve before its own, and of its own."""
    serving = [one for one in servers if one.alive and one.serves(job.queue, job.task)]
    if not serving or job.run_at > job.seen_at:
        return _NONE
    before = [one.queues[: one.queues.index(job.queue)] for one in serving]
    earlier = [queue for queue in before[0] if queue not in paused and all(queue in others for others in before)]
    lanes = [(queue, priority) for queue in earlier for priority in range(9, -1, -1)]
    lanes += [(job.queue, priority) for priority in range(9, job.priority - 1, -1)]
    known = [one.tasks for one in serving if one.tasks is not None]
    parameters = {
        "queues": [queue for queue, _ in lanes],
        "priorities": [priority for _, priority in lanes],
        "until_at": [job.seen_at] * (len(lanes) - 1) + [job.run_at],
        "until_ids": [_LAST_ID] * (len(lanes) - 1) + [job.id],
        "tasks": sorted(frozenset().union(*known)) if len(known) == len(serving) else None,
        "cap": COUNT_CAP,
    }
    go_by_index(connection)
    return Count(*connection.execute(query("count_ahead"), parameters, prepare=False).fetchall()[0])
