"""The end of a pool: asked to drain, hurried, or stopped at once; and who is still there when the time is up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from pgworker.linux.pidfd import kill_group
from pgworker.master.children import WorkerChild
from pgworker.master.fields import fields
from pgworker.model.graces import SHUTDOWN_GRACE
from pgworker.model.state import CancelReason

LAST_CALL = 1.0
"""Seconds after the end of a drain at which whoever is still there is killed."""

_SECOND_INTERRUPT = 1.0  # seconds: two Ctrl-C within it are one
_KILL = 9

log = logging.getLogger("pgworker.master")


class Drain:
    """When the pool is to be gone. Times are of the monotonic clock.

    `announce` is told, once, how many seconds it will take at most until the workers are gone.
    """

    def __init__(self, workers: Sequence[WorkerChild], timeout: float, announce: Callable[[float], None]) -> None:
        self._workers = workers
        self._timeout = timeout
        self._announce = announce
        self._interrupted_at: float | None = None
        self._is_quick = False
        self.until: float | None = None
        self.timed_out = False
        """Whether anything had to be stopped."""

    @property
    def is_on(self) -> bool:
        return self.until is not None

    def begin(self, why: str) -> None:
        """Stop claiming, hand back, let running jobs finish. A second TERM changes nothing."""
        if self.is_on:
            return
        running = self._running()
        self._ask_all(time.monotonic() + self._timeout)  # first: who reads that we drain may count on it
        told = fields("draining", jobs=running)
        log.info("%s: draining, %d running jobs have %g s", why, running, self._timeout, extra=told)

    def interrupt(self) -> None:
        """Ctrl-C: drain; again, a second later: stop now; a third time: kill."""
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            self.begin("INT (again: stop now)")
        elif now - self._interrupted_at > _SECOND_INTERRUPT:
            self._interrupted_at = now
            if not self._is_quick:
                self.stop_now("INT again")
            else:
                log.warning("INT a third time: every worker is killed", extra=fields("drain_hurried"))
                self.end_now()

    def stop_now(self, why: str) -> None:
        """The cancel flag for every run, a short grace, then the kill; what was stopped goes back uncharged."""
        if self._is_quick:
            return
        self._is_quick = True
        running = self._running()
        until = time.monotonic() + SHUTDOWN_GRACE
        if self.until is None:
            self._ask_all(until)
        self.until = until if self.until is None else min(self.until, until)
        told = fields("drain_hurried", jobs=running)
        log.warning("%s: %d running jobs are stopped and go back to the queue, uncharged", why, running, extra=told)

    def end_now(self) -> None:
        """Kill whoever is still there."""
        self.until = time.monotonic() - LAST_CALL

    def enforce(self, killed: dict[int, CancelReason]) -> None:
        """Stop what runs when the time is nearly up, and kill, noting it in `killed`, who is there after it."""
        if self.until is None:
            return
        left = self.until - time.monotonic()
        if left > SHUTDOWN_GRACE:
            return
        for child in self._workers:
            if not child.pid:
                continue
            for run in child.row.runs():
                self.timed_out = True
                child.row.ask_cancel(run, CancelReason.SHUTDOWN)
            if left <= -LAST_CALL:  # no handler, so no ladder, or one that is too long
                self.timed_out = True
                killed[child.pid] = CancelReason.SHUTDOWN
                kill_group(child.pid, _KILL)

    def _ask_all(self, until: float) -> None:
        self._announce(until - time.monotonic() + LAST_CALL)
        self.until = until
        for child in self._workers:
            if child.pid:
                child.drain("")

    def _running(self) -> int:
        return sum(len(child.row.runs()) for child in self._workers if child.pid)
