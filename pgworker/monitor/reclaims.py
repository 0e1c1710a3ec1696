"""Reclaims: what dead workers of this pool held, at once and with the board as witness; what others left, by expiry."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import psycopg
from psycopg import Connection

from pgworker.db.connect import is_outage
from pgworker.lifecycle.heartbeat import PoolIdentity, WorkerProcess, end_worker
from pgworker.lifecycle.reclaim import (
    Findings,
    Reclaimable,
    Reclaimed,
    ReclaimedLease,
    TakenLease,
    find_reclaimable,
    reclaim_lease,
)
from pgworker.linux.board import Board
from pgworker.linux.control import Death
from pgworker.linux.row import LeaseEntry, Run
from pgworker.model.retry import Backoff
from pgworker.model.state import Outcome
from pgworker.observe.logs import fields, job_fields, logger
from pgworker.observe.metrics import PoolMetrics

_REMEMBER = 600.0
"""Seconds that a death is remembered with what the board showed: its last claim may commit after it."""

_LOOK_AGAIN = 10.0
"""Seconds after a death during which every beat looks for such a claim."""

log = logger("monitor.reclaims")


@dataclass(frozen=True, slots=True)
class Witness:
    """What the board showed of a worker when it died."""

    death: Death
    runs: tuple[Run, ...]
    entries: tuple[LeaseEntry, ...]
    last_run: tuple[int, int]
    """The entry of the lease, and the position, of the job that was started last."""
    forked_ns: int
    seen_at: float
    """When it was seen, then when it was recorded: an outage between the two makes no witness forget."""

    def look(self, lease_id: UUID, taken: TakenLease) -> Findings:
        """What is known of each position: run to its end but unsettled, running, or never started. If nothing ran in a
        worker that died of itself, the last one that had is suspected."""
        now_ns = time.monotonic_ns()
        entry = next((entry for entry in self.entries if entry.lease_id == lease_id), None)
        outcomes: list[Outcome | None] = [None] * len(taken.job_ids)
        started_us: list[int | None] = [None] * len(taken.job_ids)
        if entry is not None:
            started = min(entry.started, len(outcomes))
            outcomes[:started] = [Outcome.LOST] * started
            for run in self.runs:
                if run.lease == entry.index and run.position <= started:
                    outcomes[run.position - 1] = Outcome(self.death.verdicts[run.slot])
                    started_us[run.position - 1] = (now_ns - run.since_ns) // 1000
        suspects = sum(self.death.verdicts[run.slot] == Outcome.CRASHED for run in self.runs)
        had_ended = not suspects and self.death.verdict == Outcome.CRASHED
        if had_ended and entry is not None and entry.index == self.last_run[0] and 0 < self.last_run[1] <= started:
            outcomes[self.last_run[1] - 1] = Outcome.CRASHED
        return Findings(outcomes, started_us, self.death.how, 0, _error(self.death), suspects, had_ended)


class Reclaims:
    """Deaths that wait to be recorded, and the memory of those that were."""

    def __init__(
        self,
        board: Board,
        pool: PoolIdentity,
        lease_ttl: float,
        patience: float,
        metrics: PoolMetrics,
    ) -> None:
        """`patience`: how long, in seconds, other pools have to take back themselves what their dead workers held."""
        self._board = board
        self._pool = pool
        self._lease_ttl = lease_ttl
        self._patience = patience
        self._metrics = metrics
        self._waiting: dict[str, Death] = {}
        self._witnesses: dict[UUID, Witness] = {}
        self._look_until = 0.0

    def note(self, death: Death) -> None:
        """The master says that a worker has ended; its row stays as it is until we have acknowledged that."""
        worker_id = UUID(death.worker_id)
        if worker_id not in self._witnesses:
            row = self._board.rows[death.row]
            leases = tuple(row.leases())
            self._witnesses[worker_id] = Witness(
                death, row.runs(), leases, row.last_run, row.forked_ns, time.monotonic()
            )
            self._metrics.count_exit(death.verdict if death.verdict != Outcome.SUCCEEDED else "drained")
        self._waiting[death.worker_id] = death

    @property
    def is_waiting(self) -> bool:
        """Whether a death is still to be recorded."""
        return bool(self._waiting)

    @property
    def is_urgent(self) -> bool:
        """Whether a look is worth it at every beat: somebody died, or a moment ago."""
        return bool(self._waiting) or time.monotonic() < self._look_until

    def record_deaths(self, connection: Connection[Any]) -> list[str]:
        """Write down who ended and how; returns the workers whose rows of the board are free again."""
        recorded = []
        for worker_id, death in list(self._waiting.items()):
            age_us = (time.monotonic_ns() - self._witnesses[UUID(worker_id)].forked_ns) // 1000
            process = WorkerProcess(UUID(worker_id), death.pid, death.row, age_us)
            end_worker(connection, self._pool, process, death.how)
            del self._waiting[worker_id]
            recorded.append(worker_id)
            self._witnesses[UUID(worker_id)] = replace(self._witnesses[UUID(worker_id)], seen_at=time.monotonic())
            self._look_until = time.monotonic() + _LOOK_AGAIN
        for forgotten in [key for key, seen in self._witnesses.items() if time.monotonic() - seen.seen_at > _REMEMBER]:
            del self._witnesses[forgotten]
        return recorded

    def reclaim(
        self,
        connection: Connection[Any],
        may_take_expired: Callable[[], datetime | None],
        others_until: datetime | None,
    ) -> list[Reclaimed]:
        """Take back every lease that nobody holds; returns the jobs that went back to the queue.

        `may_take_expired` says until when by the database's clock, None: not now. It is asked again before each: what
        held up our last statement may have held up renewals too. `others_until` says the same of what ended workers of
        other pools held.
        """
        until = may_take_expired()
        found = find_reclaimable(
            connection,
            by_expiry=until is not None,
            pool_id=self._pool.pool_id,
            silence=self._lease_ttl,
            patience=self._patience,
            until=until,
            others_until=others_until,
        )
        requeued: list[Reclaimed] = []
        for lease in found:
            until = may_take_expired()
            if lease.only_expired and (self._is_shown(lease) or until is None):
                continue  # shown: ours, its worker lives, and its renewal is under way
            try:
                requeued += self._reclaim_one(connection, lease, until)
            except psycopg.Error as error:
                if connection.closed or is_outage(error):
                    raise
                log.exception(
                    "a lease can't be taken back, the others are; it is tried again: is its data damaged?",
                    extra=fields("reclaim_failed", lease=lease.lease_id),
                )
        return requeued

    def _reclaim_one(self, connection: Connection[Any], lease: Reclaimable, until: datetime | None) -> list[Reclaimed]:
        done = reclaim_lease(connection, lease, partial(self._look, lease), Backoff(), until)
        if done is None:
            return []
        for job in done.jobs:
            self._log_reclaimed(job, done)
        return [job for job in done.jobs if job.run_at is not None]

    def _is_shown(self, lease: Reclaimable) -> bool:
        return any(entry.lease_id == lease.lease_id for row in self._board.rows if row.pid for entry in row.leases())

    def _look(self, lease: Reclaimable, taken: TakenLease) -> Findings:
        witness = self._witnesses.get(lease.worker_id)
        if witness is not None:
            return witness.look(lease.lease_id, taken)
        nothing: list[None] = [None] * len(taken.job_ids)
        if any(row.pid and row.worker_id == lease.worker_id for row in self._board.rows):
            return Findings(nothing, nothing, "the answer to its claim was lost")
        cause = (
            lease.ended_how
            or f"its lease expired: worker {lease.worker_id} has not been heard of for {self._lease_ttl:g} s"
        )
        return Findings(nothing, nothing, cause, assumed_running=taken.slots, suspects=taken.slots)

    def _log_reclaimed(self, job: Reclaimed, done: ReclaimedLease) -> None:
        self._metrics.count_reclaimed(job.queue, job.task, job.outcome)
        who = job_fields(job.job_id, job.execution, job.task, job.queue, job.org_id)
        who |= {"lease": done.lease_id, "worker_id": done.worker_id}
        if job.started_us is not None:
            who["duration"] = job.started_us / 1e6
        if job.outcome is None:
            log.debug("taken back, not started: it goes back to the queue", extra=fields("job_released", **who))
            return
        if job.is_dead:
            onward = f"its attempts are used up: it is a dead letter now; see pgworker jobs show {job.job_id}"
        elif job.outcome is Outcome.CANCELLED:
            onward = "it was cancelled and does not run again"
        elif job.outcome.is_charged:
            onward = "it runs again, and this counts as a failure"
        else:
            onward = "it runs again, uncharged"
        log.warning(
            "job taken back: %s; %s",
            job.cause,
            onward,
            extra=fields(
                "job_dead_lettered" if job.is_dead else "execution_reclaimed",
                **who,
                outcome=job.outcome.value,
                cause=job.cause,
            ),
        )


def _error(death: Death) -> str | None:
    if death.verdict == Outcome.SUCCEEDED:
        return None
    described = {"type": f"pgworker.{death.verdict}", "message": death.how, "traceback": death.stack}
    return msgspec.json.encode(described).decode()
