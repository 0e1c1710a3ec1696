"""Renewals: leases that living workers show on the board live on; what is gone is flagged, what is cancelled told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.config.settings import PoolSettings
from pgworker.lifecycle.renew import renew_leases
from pgworker.linux import process
from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow, LeaseEntry
from pgworker.model.state import CancelReason
from pgworker.observe.logs import fields, logger
from pgworker.observe.metrics import PoolMetrics

_RENEW_AT = 1 / 3
"""The part of a lease's life after which it is renewed."""

_NOT_ALIVE = frozenset({"T", "t", "Z", None})
"""States of proc(5) in which a worker does no work: stopped, traced, dead. One that holds its GIL in C is alive."""

_DEKKER_PAUSE = 0.005
"""Seconds between drawing a line and reading how far the worker is: a store leaves a CPU's buffer long before."""

log = logger("monitor.renewals")


class Renewals:
    """What is known of the pool's own leases between two beats."""

    def __init__(self, board: Board, settings: PoolSettings, metrics: PoolMetrics) -> None:
        self._board = board
        self._settings = settings
        self._metrics = metrics
        self._cancelled: dict[UUID, set[int]] = {}
        self._missed: set[UUID] = set()
        self.is_any_held = True
        """Whether there was a lease at the last look at the board."""

    def renew_due(self, connection: Connection[Any], now_ns: int) -> None:
        """Renew leases past a third of their life, and pass on what came back.

        Where nobody listens, a renewal is also how a cancel is heard of: then each is due with the polls.
        """
        after = self._settings.lease_ttl * _RENEW_AT
        if self._settings.pooler:
            after = min(after, self._settings.poll_interval)
        due_ns = int(after * 1e9)
        due = [held for held in self._held() if now_ns - held[1].renewed_ns > due_ns and self._deserves(held, now_ns)]
        self._renew(connection, due)
        self._metrics.renewed()

    def renew_these(self, connection: Connection[Any], lease_ids: set[UUID]) -> set[UUID]:
        """Likewise those of them that are ours, due or not. Returns which to ask for again: somebody else had them in
        hand, or they are missing, perhaps settled this moment."""
        return self._renew(connection, [held for held in self._held() if held[1].lease_id in lease_ids])

    def all_held(self) -> set[UUID]:
        """The leases that the board shows as ours."""
        return {entry.lease_id for _, entry in self._held()}

    def pass_on_cancels(self) -> None:
        """Flag the runs whose jobs were cancelled, those too that have started since the mark was seen."""
        shown: set[UUID] = set()
        for row, entry in self._held():
            shown.add(entry.lease_id)
            positions = self._cancelled.get(entry.lease_id)
            if positions:
                _flag(row, entry, CancelReason.CANCELLED, positions)
        self.is_any_held = bool(shown)
        for gone in self._cancelled.keys() - shown:
            del self._cancelled[gone]
        self._missed &= shown

    def _held(self) -> list[tuple[BoardRow, LeaseEntry]]:
        """What is shown and ours: neither lost, nor going back whole behind a job that holds its worker's GIL."""
        return [
            (row, entry)
            for row in self._board.rows
            if row.pid
            for entry in row.leases()
            if not entry.is_lost and not (row.line(entry.index) == 0 and entry.started == 0)
        ]

    def _deserves(self, held: tuple[BoardRow, LeaseEntry], now_ns: int) -> bool:
        """Whether its worker lives, and no job of it runs long past the time by which it must have been killed."""
        row, entry = held
        if process.state(row.pid) in _NOT_ALIVE:
            return False
        patience = self._settings.cancel_grace + 2 * self._settings.term_grace + self._settings.lease_ttl
        late_ns = now_ns - int(patience * 1e9)
        return not any(0 < run.deadline_ns <= late_ns for run in row.runs_of(entry))

    def _renew(self, connection: Connection[Any], due: list[tuple[BoardRow, LeaseEntry]]) -> set[UUID]:
        unanswered: set[UUID] = set()
        if not due:
            return unanswered
        sent_ns = time.monotonic_ns()
        renewed = renew_leases(connection, [entry.lease_id for _, entry in due], self._settings.lease_ttl)
        for row, entry in due:
            renewal = renewed.get(entry.lease_id)
            if renewal is None:
                if self._miss(row, entry):
                    unanswered.add(entry.lease_id)
                continue
            self._missed.discard(entry.lease_id)
            if renewal.is_busy:
                unanswered.add(entry.lease_id)
                continue
            row.stamp_renewal(entry, sent_ns)
            if renewal.cancelled:
                self._cancelled[entry.lease_id] = {position for position in renewal.cancelled if position is not None}
        return unanswered

    def _miss(self, row: BoardRow, entry: LeaseEntry) -> bool:
        """Not returned: settled this very moment or, if it is still shown at the next tick, reclaimed by somebody.
        True: ask again then.

        One of which nothing runs or is to start any more was settled too: its worker, whose GIL is held, has not read
        the answer yet. If it was not, that settle will say so.
        """
        if entry.lease_id not in self._missed:
            self._missed.add(entry.lease_id)
            return True
        if entry.started >= entry.count and not row.runs_of(entry):
            return False
        row.mark_lost(entry)
        _flag(row, entry, CancelReason.LEASE_LOST)
        self._metrics.count_lost_lease()
        log.error(
            "a lease is lost: others have its jobs, and what runs of it is stopped. Were the database or this host held"
            " up for longer than --lease-ttl?",
            extra=fields("lease_lost", lease=entry.lease_id, worker=row.index, worker_id=row.worker_id),
        )
        return False


def _flag(row: BoardRow, entry: LeaseEntry, reason: CancelReason, positions: Collection[int] | None = None) -> None:
    """Ask the runs of this lease to stop; None: whatever their positions."""
    for run in row.runs_of(entry):
        if positions is None or run.position in positions:
            row.ask_cancel(run, reason)


def draw_lines(
    board: Board, now_ns: int, after_ns: int, release: Callable[[UUID, int], bool], unanswered: set[UUID]
) -> None:
    """Give back what waits behind jobs that hold its worker's GIL, so that its clerk can't: where nothing was started
    for `after_ns`.

    A line on the board first, then a pause, then a look whether the runner was quicker; see `BoardRow.draw_line`.
    `unanswered`, kept from one call to the next: leases that were perhaps released, as no answer came. Their line
    stays, or the runner might start what others have by now; the next call asks once more.
    """
    for row in board.rows:
        if not row.pid or now_ns - row.last_start_ns < after_ns or not row.runs():
            continue
        behind = [
            entry
            for entry in row.leases()
            if entry.count > entry.started
            and not entry.is_lost
            and (row.line(entry.index) is None or entry.lease_id in unanswered)
            and now_ns - entry.claimed_ns >= after_ns  # else claimed this moment, perhaps for a slot that is free
        ]
        for entry in behind:
            row.draw_line(entry, entry.started)
            unanswered.add(entry.lease_id)
        if not behind:
            continue
        time.sleep(_DEKKER_PAUSE)
        for entry in behind:
            goes_back = row.started(entry.index) <= entry.started and release(entry.lease_id, entry.started + 1)
            unanswered.discard(entry.lease_id)
            if not goes_back:
                row.erase_line(entry.index)
