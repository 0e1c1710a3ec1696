"""A witness in each worker of the chaos app: writes down what its process was told by the database.

An execution is noted as acknowledged only after the settle that records it has returned, as fenced when it was refused.
The two functions of pgworker that learn this are watched from outside; nothing of it is in pgworker.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pgworker.app.queue.leases
import pgworker.app.queue.losses
import pgworker.worker.execution
from pgworker import Context
from pgworker.app.queue.leases import ClaimedJob
from pgworker.lifecycle.settle import Ended, Settlement
from tests.chaos.evidence import ACKED, BEGAN, FENCED, STARTED, Ledger

VARIABLE = "PGWORKER_CHAOS_EVIDENCE"
"""Names the directory of the ledgers."""

NONE = "-"
"""Stands for what there is not, in a ledger."""


class Witness:
    """The ledger of this process; one that was forked since has its own."""

    def __init__(self) -> None:
        self._pid = 0
        self._ledger: Ledger | None = None
        self._refused: set[UUID] = set()

    def started(self, ctx: Context) -> None:
        """Called by a handler as its first act: with what it was given, and for whom."""
        job = ctx.job
        self._note(STARTED, job.id, job.execution, lease_of(ctx), job.payload.get("key", NONE), job.org_id or NONE)

    def acknowledged(self, ctx: Context) -> None:
        """Called by a handler when the COMMIT of its transaction has returned."""
        self._note(ACKED, ctx.job.id, ctx.job.execution, lease_of(ctx))

    def watch_starts(self) -> None:
        """From now on, note each execution before the board shows it: what nobody has begun is charged to nobody."""
        begin: Callable[..., None] = pgworker.worker.execution.Execution.start

        def begin_noted(execution: Any) -> None:
            claimed: ClaimedJob = execution.claimed
            self._note(BEGAN, claimed.row.job_id, claimed.row.execution, claimed.lease.lease_id)
            begin(execution)

        setattr(pgworker.worker.execution.Execution, "start", begin_noted)  # noqa: B010  a patch, for mypy too

    def watch_settles(self) -> None:
        """From now on, note what the settles of this process's clerk come to."""
        find: Callable[..., list[Ended]] = getattr(pgworker.app.queue.losses, "find_unsettled")  # noqa: B009
        mark: Callable[..., None] = pgworker.app.queue.leases.HeldLease.mark_settled

        def find_unsettled(cursor: Any, settlement: Settlement) -> list[Ended]:
            unsettled = find(cursor, settlement)
            if unsettled:
                self._refused.add(settlement.lease_id)
                runs = settlement.executions
                if len(runs) == 1:  # of several, some may have been recorded by a try before
                    self._note(FENCED, runs[0].job_id, runs[0].execution, settlement.lease_id)
            return unsettled

        def mark_settled(lease: pgworker.app.queue.leases.HeldLease) -> None:
            if lease.lease_id not in self._refused:
                for run in lease.ready.values():
                    if run is not None:
                        self._note(ACKED, run.job_id, run.execution, lease.lease_id)
            mark(lease)

        setattr(pgworker.app.queue.losses, "find_unsettled", find_unsettled)  # noqa: B010  a patch, for mypy too
        setattr(pgworker.app.queue.leases.HeldLease, "mark_settled", mark_settled)  # noqa: B010

    def _note(self, *words: object) -> None:
        if self._ledger is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._ledger = Ledger(Path(os.environ[VARIABLE], f"worker-{self._pid}.ledger"))
        self._ledger.note(*words)


def lease_of(ctx: Context) -> str:
    return ctx.execution_id.rpartition(":")[0]
