"""The kill ladder: a running job that must stop is asked, then its worker is told, then killed.

    flag -> grace -> stack dump -> SIGTERM -> grace -> SIGKILL to the process group

A run on the event loop has its task cancelled by its own worker first, see `Graces`.
Deadlines and the ends of leases are read off the board, so that a worker that holds its GIL in C is no exception.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, replace

from pgworker.linux import process, stacks
from pgworker.linux.pidfd import kill_group
from pgworker.linux.row import BoardRow, Run
from pgworker.linux.stacks import StackFile
from pgworker.model.graces import Graces
from pgworker.model.lease import lease_margin
from pgworker.model.state import CancelReason

_DUMP_PATIENCE_NS = 300_000_000  # what Python gets to answer a request for its stacks before C is asked


@dataclass(frozen=True, slots=True)
class Ladder:
    """How far the killing of one run has come; times are nanoseconds of the monotonic clock."""

    run: Run
    reason: CancelReason
    asked_ns: int
    dumped_ns: int = 0
    forced_ns: int = 0
    term_ns: int = 0
    killed_ns: int = 0


def find_overdue(row: BoardRow, run: Run, now_ns: int, lease_ttl: float) -> CancelReason:
    """Why this run must stop by now: its deadline is over, or its lease is about to be."""
    if run.deadline_ns and now_ns >= run.deadline_ns:
        return CancelReason.DEADLINE
    if now_ns - row.renewed_ns(run.lease) >= int((lease_ttl - lease_margin(lease_ttl)) * 1e9):
        return CancelReason.LEASE_LOST
    return CancelReason.NONE


def is_stopped_past_lease(row: BoardRow, pid: int, now_ns: int, lease_ttl: float) -> bool:
    """Whether a worker was stopped (SIGSTOP) between two jobs, with a lease in hand that has run out meanwhile."""
    oldest_ns = min((entry.renewed_ns for entry in row.leases()), default=now_ns)
    return now_ns - oldest_ns >= int(lease_ttl * 1e9) and process.state(pid) in ("T", "t")


def climb(ladder: Ladder, pid: int, stack: StackFile, graces: Graces, now_ns: int) -> Ladder:
    """Take the next step, if it is due: returns the ladder as it stands then."""
    term_at = ladder.asked_ns + graces.before_term_ns(ladder.reason, is_async=ladder.run.is_async)
    dump_at = max(ladder.asked_ns, term_at - 2 * _DUMP_PATIENCE_NS)
    if not ladder.dumped_ns:
        if now_ns < dump_at:
            return ladder
        stack.clear()
        _send(pid, stacks.ASK)
        return replace(ladder, dumped_ns=now_ns)
    if not ladder.forced_ns:
        if now_ns < ladder.dumped_ns + _DUMP_PATIENCE_NS and not stack.read():
            return ladder
        if not stack.read():
            _send(pid, stacks.FORCE)
        return replace(ladder, forced_ns=now_ns)
    if not ladder.term_ns:
        if now_ns < max(ladder.forced_ns + _DUMP_PATIENCE_NS, term_at):
            return ladder
        _send(pid, signal.SIGTERM)
        return replace(ladder, term_ns=now_ns)
    if not ladder.killed_ns and now_ns >= ladder.term_ns + graces.before_kill_ns(ladder.reason):
        kill_group(pid, signal.SIGKILL)
        return replace(ladder, killed_ns=now_ns)
    return ladder


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
