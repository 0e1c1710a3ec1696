"""One run of one job: what its context asks for, made only when asked, and what is recorded of its end."""

from __future__ import annotations

import logging
import threading
import time
from asyncio import CancelledError
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, Connection

from pgworker.app.context import Context
from pgworker.app.orgs import OrgConfig
from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.verdict import Verdict, judge_safely
from pgworker.errors import Cancelled, Discard
from pgworker.lifecycle.settle import Ended, Next
from pgworker.linux.row import BoardRow
from pgworker.model.payload import describe_error, encode_result
from pgworker.model.progress import ProgressUpdate, check_progress
from pgworker.model.state import CancelReason, Outcome
from pgworker.observe.logs import fields, logger
from pgworker.observe.vocabulary import ENDED
from pgworker.worker.transaction import JobTransactions
from pgworker.worker.transaction_async import AsyncJobTransactions

_FAR_AWAY_NS = 2**63 - 1  # what a word of the board holds; some 292 years
_LONGEST_LIMIT_MS = 2**31 - 1  # what a timeout of PostgreSQL holds; some 24 days

ProgressUpdates = dict[tuple[UUID, int], tuple[ClaimedJob, ProgressUpdate]]
"""What running jobs say of how far they are and nobody has taken yet: of each, by its lease and position, the last."""

log = logger("worker.runner")


def take_progress(progress: ProgressUpdates) -> list[tuple[ClaimedJob, ProgressUpdate]]:
    """What jobs have said by now, each the last of it; what they say meanwhile is for the next time.

    Not popitem(), so many times: it takes the newest first, and what a job said before it ended might stay behind.
    """
    taken = [progress.pop(place, None) for place in progress.copy()]  # None: another thread has just taken it
    return [said for said in taken if said is not None]


@dataclass(frozen=True, slots=True)
class SlotTransactions:
    """The connections of one slot for handlers' own transactions, made when they are first used."""

    sync: JobTransactions
    on_loop: AsyncJobTransactions


@dataclass(slots=True)
class Slot:
    """What a slot has for every execution in it, and the end of the trial of a suspect in it."""

    index: int
    row: BoardRow
    transactions: SlotTransactions
    state: SimpleNamespace
    progress: ProgressUpdates
    org_config: OrgConfig | None
    lease_ttl: float
    """Seconds."""
    trial_until_ns: int = 0
    """When the trial of its last suspect ends, by the monotonic clock: until then nothing starts beside that."""


class Execution:
    """From its start, shown on the board, to its end."""

    __slots__ = (
        "_deadline_ns",
        "_sequence",
        "claimed",
        "context",
        "has_ended",
        "is_lost",
        "is_settled",
        "slot",
        "started_ns",
    )

    def __init__(self, claimed: ClaimedJob, slot: Slot) -> None:
        """Made when it is taken; it begins with `start`."""
        self.claimed = claimed
        self.slot = slot
        self.context: Context | None = None
        self.is_settled = False
        self.is_lost = False
        self.has_ended = False
        self.started_ns = self._deadline_ns = self._sequence = 0

    def start(self) -> None:
        """Show on the board that it runs, in the thread that runs it; an async one once its task begins."""
        claimed, slot = self.claimed, self.slot
        timeout_ms = claimed.row.timeout_ms
        self.started_ns = started_ns = time.monotonic_ns()
        if timeout_ms:
            deadline_ns = started_ns + timeout_ms * 1_000_000
            self._deadline_ns = deadline_ns if deadline_ns < _FAR_AWAY_NS else _FAR_AWAY_NS
        self._sequence = slot.row.start_run(
            slot.index,
            claimed.lease.entry,
            claimed.position,
            started_ns,
            self._deadline_ns,
            threading.get_ident(),
            claimed.task.is_async,
            slot.trial_until_ns if claimed.row.suspicions else 0,
        )

    @property
    def reason(self) -> CancelReason:
        return self.slot.row.cancel_reason(self.slot.index, self._sequence)

    def call(self) -> Any:
        """Run the handler; whatever it raises comes through."""
        claimed, task, payload = self.claimed, self.claimed.task, self.claimed.row.payload
        if payload is None:
            raise _row_is_missing()
        context = self._made_context() if task.needs_context else None
        return task.invoke(payload, context, claimed.job)

    async def call_async(self) -> Any:
        """As `call`, on the event loop."""
        claimed, task, payload = self.claimed, self.claimed.task, self.claimed.row.payload
        if payload is None:
            raise _row_is_missing()
        context = self._made_context() if task.needs_context else None
        return await task.invoke_async(payload, context, claimed.job)

    def end(self) -> None:
        """The handler runs no more."""
        self.has_ended = True
        self.slot.row.end_run(self.slot.index, self._sequence)

    # -- what is recorded

    def returned(self, result: object) -> Ended:
        """The handler has returned: a success, unless it knew that it was to stop."""
        job, finished_ns = self.claimed.row, time.monotonic_ns()
        if self.context is not None and self._cancel_seen and self.must_end and not self.is_settled:
            return self.failed(Cancelled(f"{self.reason.words}: the handler knew, and returned"))
        if result is None:
            return Ended(job.job_id, job.execution, self.started_ns, finished_ns)
        stored = encode_result(result)
        if stored.problem:
            log.warning("%s", stored.problem, extra=fields("result_not_stored", **self.claimed.log_fields()))
        text = None if stored.json is None else stored.json.decode()
        return Ended(job.job_id, job.execution, self.started_ns, finished_ns, result=text)

    def failed(self, error: BaseException) -> Ended:
        """The handler has raised `error`."""
        row, reason = self.claimed.row, self.reason
        if isinstance(error, CancelledError) and reason is not CancelReason.NONE:
            # Ours, sent to a handler on the loop that did not look.
            error = Cancelled(reason.words).with_traceback(error.__traceback__)
        verdict = judge_safely(error, reason, self._cancel_seen, self.claimed)
        described = describe_error(error)
        finished_ns = time.monotonic_ns()
        if not self.is_settled and not self.is_lost:
            onward: dict[str, object] = {"retry_in": round(verdict.delay, 3)} if verdict.next is Next.REQUEUE else {}
            if verdict.outcome.is_charged:
                onward |= {"error": described["type"], "error_message": described["message"]}
            self._log_end(verdict, finished_ns, **onward)
        stored = None if verdict.outcome is Outcome.CANCELLED else msgspec.json.encode(described).decode()
        return verdict.ended(row, self.started_ns, finished_ns, stored)

    def tell_of_transaction(self, ended: Ended) -> None:
        """Say if its own transaction was committed, or has found the lease gone, though the handler ended otherwise."""
        if self.is_settled:
            if ended.outcome is not Outcome.SUCCEEDED:
                self._warn_of_failure_after_commit(ended)
        elif self.is_lost:
            self._log_loss()

    def _warn_of_failure_after_commit(self, ended: Ended) -> None:
        told = msgspec.json.decode(ended.error or "{}")
        log.warning(
            "the handler failed after its transaction had committed: the job has succeeded all the same",
            extra=fields(
                "failed_after_commit",
                **self.claimed.log_fields(),
                error=told.get("type"),
                error_message=told.get("message"),
                exception=told.get("traceback"),
            ),
        )

    def _log_loss(self) -> None:
        log.error(
            "its lease is gone: another worker has this job, its transaction is rolled back and nothing is recorded",
            extra=fields("result_lost", **self.claimed.log_fields(), outcome=Outcome.LOST.value),
        )

    def log_start(self) -> None:
        log.debug("started", extra=fields("job_started", **self.claimed.log_fields()))

    def _log_end(self, verdict: Verdict, finished_ns: int, **more: object) -> None:
        """One line for whatever is no plain success. The stack of an error is on the execution's row."""
        outcome, consequence, is_dead = verdict.outcome, verdict.consequence, verdict.next is Next.BURY
        level = logging.WARNING if is_dead or outcome.is_charged or outcome is Outcome.LOST else logging.INFO
        if not log.isEnabledFor(level):
            return
        duration = round((finished_ns - self.started_ns) / 1e9, 6)
        hint = f"; see pgworker jobs show {self.claimed.row.job_id}" if is_dead else ""
        log.log(
            level,
            "job %s%s",
            outcome.value.replace("_", " "),
            "" if consequence == outcome.value else f"; {consequence}{hint}",
            extra=fields(
                "job_dead_lettered" if is_dead else ENDED[outcome],
                **self.claimed.log_fields(),
                outcome=outcome.value,
                duration=duration,
                **more,
            ),
        )

    @property
    def _cancel_seen(self) -> bool:
        return self.context is not None and self.context.cancel_seen

    # -- the context

    def _made_context(self) -> Context:
        self.context = Context(
            make_job=self.claimed.job,
            lease_id=self.claimed.lease.lease_id,
            position=self.claimed.position,
            deadline_ns=self._deadline_ns,
            cancel_reason=lambda: self.reason,
            state=self.slot.state,
            org_config=self.slot.org_config,
            transaction=self._transaction,
            transaction_async=self._transaction_async,
            progress=self._progress,
            checkpoint=self.claimed.row.checkpoint,
        )
        return self.context

    def _transaction(self) -> AbstractContextManager[Connection[Any]]:
        if self.claimed.task.is_async:
            raise RuntimeError("ctx.transaction() would block the event loop: `async with ctx.transaction_async()`")
        return self.slot.transactions.sync.open(self)

    def _transaction_async(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        if not self.claimed.task.is_async:
            raise RuntimeError("ctx.transaction_async() is for `async def` tasks: `with ctx.transaction()`")
        return self.slot.transactions.on_loop.open(self)

    def _progress(self, fraction: float, message: str, checkpoint: Mapping[str, Any] | None) -> None:
        update, place = check_progress(self.claimed.row.job_id, fraction, message, checkpoint), self._place
        before = self.slot.progress.get(place)  # should the clerk take it this moment, its checkpoint is stored twice
        self.slot.progress[place] = self.claimed, update.after(before[1] if before else None)

    @property
    def _place(self) -> tuple[UUID, int]:
        return self.claimed.lease.lease_id, self.claimed.position

    @property
    def must_end(self) -> bool:
        return self.reason is not CancelReason.NONE

    @property
    def idle_limit_ms(self) -> int:
        """How long a transaction of this run may stay open without a statement."""
        if not self._deadline_ns:
            return 600_000
        left_ms = (self._deadline_ns - time.monotonic_ns()) // 1_000_000
        return max(1000, min(left_ms + 1000, _LONGEST_LIMIT_MS))

    @property
    def commit_limit_ms(self) -> int:
        """How long it may stay open once it has settled this run. As long as a lease: who is stopped for longer has
        lost it, but for the lock, which would keep everybody from taking the other jobs of that lease."""
        return int(self.slot.lease_ttl * 1000)


def _row_is_missing() -> Discard:
    return Discard("its row in pgworker.jobs is missing: the partition was dropped while it waited")
