"""Who is being killed and for what: the ladder of each run that must stop, from its first step to its worker's end."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pgworker.linux.pidfd import kill_group
from pgworker.linux.row import Run
from pgworker.linux.stacks import StackFile
from pgworker.master.children import WorkerChild
from pgworker.master.deadlines import Ladder, climb, find_overdue, is_stopped_past_lease
from pgworker.model.graces import Graces
from pgworker.model.state import CancelReason, Outcome


@dataclass(frozen=True, slots=True)
class Charge:
    """What a worker was killed for as a whole, and what the runs count as in those slots that it was killed for: one
    that was only started there meanwhile is lost."""

    killed_for: CancelReason
    culprits: dict[int, Outcome]


class Ladders:
    """The ladders of all workers, by pid and slot."""

    def __init__(self, workers: Sequence[WorkerChild], files: Sequence[StackFile], graces: Graces, ttl: float) -> None:
        self._workers = workers
        self._files = files
        self._graces = graces
        self._lease_ttl = ttl
        self._ladders: dict[tuple[int, int], Ladder] = {}
        self.killed: dict[int, CancelReason] = {}
        """Why, by the pids that were killed without a ladder."""
        self.is_any_running = False

    def pids(self) -> set[int]:
        """The processes that have one."""
        return {pid for pid, _ in self._ladders}

    def go_on(self) -> None:
        """Find the runs that must stop by now, and take the next step with each, if it is due."""
        now_ns = time.monotonic_ns()
        self.is_any_running = False
        for child in self._workers:
            if not child.pid:
                continue
            runs = child.row.runs()
            self.is_any_running |= bool(runs)
            self._forget_those_that_stopped(child, runs)
            for run in runs:
                key = child.pid, run.slot
                ladder = self._ladders.get(key) or self._find_reason(child, run, now_ns)
                if ladder is not None:
                    self._ladders[key] = climb(ladder, child.pid, self._files[child.row.index], self._graces, now_ns)
            if not runs and is_stopped_past_lease(child.row, child.pid, now_ns, self._lease_ttl):
                self.killed[child.pid] = CancelReason.LEASE_LOST
                kill_group(child.pid, signal.SIGKILL)

    def take(self, pid: int, runs: Sequence[Run], *, by_signal: bool) -> Charge:
        """What this process, which has ended with these runs, was killed for; it is forgotten."""
        ladders = {slot: self._ladders.pop((found, slot)) for found, slot in list(self._ladders) if found == pid}
        killed_for = self.killed.pop(pid, CancelReason.NONE)
        if not by_signal:
            return Charge(killed_for, {})
        culprits = {}
        for slot, ladder in ladders.items():
            still_runs = _still_runs(ladder, runs)
            if ladder.forced_ns or (ladder.dumped_ns and still_runs):  # a forced dump may kill by SIGSEGV
                culprits[slot] = ladder.reason.outcome if still_runs else Outcome.LOST
                killed_for = ladder.reason
        return Charge(killed_for, culprits)

    def _forget_those_that_stopped(self, child: WorkerChild, runs: Sequence[Run]) -> None:
        """They stopped in time; a worker that has had SIGTERM drains."""
        own = [(key, ladder) for key, ladder in self._ladders.items() if key[0] == child.pid]
        stopped = [key for key, ladder in own if not ladder.killed_ns and not _still_runs(ladder, runs)]
        for key in stopped:
            del self._ladders[key]
        if stopped and len(stopped) == len(own):
            self._files[child.row.index].clear()  # no evidence of how a later job ends

    def _find_reason(self, child: WorkerChild, run: Run, now_ns: int) -> Ladder | None:
        reason = child.row.cancel_reason(run.slot, run.sequence)
        if reason is CancelReason.NONE:
            reason = find_overdue(child.row, run, now_ns, self._lease_ttl)
            if reason is CancelReason.NONE:
                return None
            child.row.ask_cancel(run, reason)
        return Ladder(run, reason, now_ns)


def _still_runs(ladder: Ladder, runs: Sequence[Run]) -> bool:
    """Whether the run that a ladder is for is among these: its slot may have the next one by now."""
    return any((run.slot, run.sequence) == (ladder.run.slot, ladder.run.sequence) for run in runs)
