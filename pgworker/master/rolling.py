"""Replacing workers that work, one at a time: all of them after HUP, or one that has reached a limit.

A worker imports the app after the fork, so a new process has the new app. The next worker is asked to drain only when
every place has a worker that is ready: capacity never falls below one less than all. Those that run nothing go first:
a long job delays its own worker and others with long jobs, nobody else.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence

from pgworker.errors import CHECK_PASSED, EXIT_BUG, EXIT_CONFIGURATION, EXIT_UNAVAILABLE
from pgworker.linux.fork import fork_child
from pgworker.linux.pidfd import Exit, kill_group
from pgworker.master.children import WorkerChild
from pgworker.master.fields import fields
from pgworker.model.recycle import RecycleReason
from pgworker.model.state import CancelReason

CheckApp = Callable[[], int]
"""Import the app in a child that is gone afterwards; 0, or the exit code of an error that it has logged."""

_WHY = "HUP"
_SAID_WHY = (EXIT_UNAVAILABLE, EXIT_BUG, EXIT_CONFIGURATION)

log = logging.getLogger("pgworker.master")


class Rolling:
    """The rolling restart under way, if any.

    `patience` in seconds: for the check of the app, for a new worker, and for the stop hooks of an old one. `job_time`
    in seconds: for the jobs of an old worker, which are then stopped and go back to the queue; None: all they take.
    """

    def __init__(
        self, workers: Sequence[WorkerChild], check_app: CheckApp | None, patience: float, job_time: float | None
    ) -> None:
        self._workers = workers
        self._check_app = check_app
        self._patience = patience
        self._job_time = job_time
        self._check_pid = 0
        self._checked_at = 0.0
        self._since: float | None = None
        """When the new app was first imported: a worker forked before that runs the old one. None: no roll."""
        self._once_more = False

    @property
    def is_on(self) -> bool:
        return self._check_pid != 0 or self._since is not None

    def ask(self) -> None:
        """HUP: check the new app, then replace every worker. During a roll: once more after it."""
        if self._check_app is None:
            log.warning(
                "HUP refused: with --preload the app lives in the master; stop the pool and start it anew",
                extra=fields("signal_ignored"),
            )
        elif self.is_on:
            if not self._once_more:
                log.info("HUP: once more, when the rolling restart under way is over", extra=fields("restart_begun"))
            self._once_more = True
        else:
            self._check(self._check_app)

    def abandon(self) -> None:
        """The pool drains: nobody is replaced any more."""
        if self._check_pid:
            kill_group(self._check_pid, signal.SIGKILL)
        self._check_pid, self._since, self._once_more = 0, None, False

    def bury_check(self, exit_: Exit) -> bool:
        """Whether this was the end of the check; if so, the roll begins or is over."""
        if exit_.pid != self._check_pid:
            return False
        self._check_pid = 0
        if exit_.code == CHECK_PASSED:
            self._begin()
            return True
        if exit_.code not in _SAID_WHY:
            log.error(
                "HUP: the process that tried to import the app ended with it (%s); the old workers go on",
                exit_.describe(),
                extra=fields("restart_failed"),
            )
        self._end()
        return True

    def note_end(self, child: WorkerChild, exit_: Exit, *, was_ready: bool, clean: bool) -> None:
        """A worker has ended: if it had the new app and never got ready, the others keep the old one."""
        is_new = self._since is not None and child.forked_at >= self._since
        if is_new and not was_ready and not clean:
            self._stop(f"worker {child.row.index} ended before it was ready ({exit_.describe()})")

    def go_on(self, *, had_worker: bool) -> None:
        """Take the next step, if it is due. `had_worker`: a worker of this pool has been ready."""
        now = time.monotonic()
        self._end_the_idle(now)
        self._stop_the_long(now)
        if self._check_pid:
            if now - self._checked_at > self._patience:
                log.error(
                    "HUP: the app was not imported within %g s; the old workers go on. Does its import wait for"
                    " something? --boot-timeout gives it longer",
                    self._patience,
                    extra=fields("restart_failed"),
                )
                kill_group(self._check_pid, signal.SIGKILL)
                self._check_pid = 0
                self._end()
            return
        places = [child for child in self._workers if child.is_wanted]
        if self._since is not None and (late := self._find_late(places, now)) is not None:
            self._stop(f"worker {late.row.index} was not ready within {self._patience:g} s")
        if self._since is None and had_worker:  # a first start may take what it takes
            self._end_the_late(now)
        if not all(child.is_up for child in places):
            return
        if self._since is None:
            _recycle_one(places)
        elif old := [child for child in places if child.forked_at < self._since]:
            min(old, key=lambda child: len(child.row.runs())).drain(_WHY)
        else:
            told = fields("restart_done", workers=len(places))
            log.info("HUP: %d workers run the app as it is now", len(places), extra=told)
            self._end()

    def _check(self, check_app: CheckApp) -> None:
        try:
            pid = fork_child(check_app, keep_fds=(), death_signal=signal.SIGKILL, blocked=())
        except OSError as error:
            log.error("HUP: can't fork: %s; the old workers go on", error, extra=fields("restart_failed"))
            return
        log.info("HUP: trying the app in a process of its own", extra=fields("restart_begun"))
        self._check_pid, self._checked_at = pid, time.monotonic()

    def _begin(self) -> None:
        """Those that wait to be started after failures need not wait: they will have the new app too. Nor is one waited
        for that still starts the old one: it may hang there for ever, which is what the new app is to mend."""
        now = time.monotonic()
        self._since = self._checked_at
        log.info("HUP: the app can be imported; workers are replaced, one at a time", extra=fields("restart_begun"))
        for child in self._workers:
            child.failures, child.start_at = 0, min(child.start_at, now)
            if child.pid and child.forked_at < self._since and not child.row.is_ready:
                child.give_up("HUP, and it was not ready with the app as it was")

    def _end_the_idle(self, now: float) -> None:
        """Who drains, holds nothing and doesn't end, hangs in a stop hook: nobody would ever take its place."""
        for child in self._workers:
            if not child.pid or not child.row.is_ready or not child.row.is_draining or any(child.row.leases()):
                child.empty_since = now
            elif now - child.empty_since > self._patience and not child.given_up:
                child.give_up(f"it had drained and did not end within {self._patience:g} s (a stop hook that hangs?)")

    def _end_the_late(self, now: float) -> None:
        """Who is not ready by now hangs in an import or a start hook: its place would stay empty, and nobody would be
        recycled any more."""
        for child in self._workers:
            if child.pid and not child.row.is_ready and now - child.forked_at > self._patience and not child.given_up:
                child.give_up(
                    f"it was not ready within {self._patience:g} s (an import or a start hook that waits?"
                    " --boot-timeout gives it longer)"
                )

    def _stop_the_long(self, now: float) -> None:
        """Who edits the app waits for the new one, not for a job of the old one."""
        for child in self._workers:
            if self._job_time is None or not child.pid or child.asked != _WHY or now - child.asked_at < self._job_time:
                continue
            for run in child.row.runs():
                if child.row.cancel_reason(run.slot, run.sequence) is CancelReason.NONE:
                    child.row.ask_cancel(run, CancelReason.SHUTDOWN)
                    log.warning(
                        "HUP: a job of worker %d is stopped after %g s and goes back to the queue, uncharged",
                        child.row.index,
                        self._job_time,
                        extra=fields("restart_hurried"),
                    )

    def _find_late(self, places: Sequence[WorkerChild], now: float) -> WorkerChild | None:
        def is_late(child: WorkerChild) -> bool:
            is_booting = child.pid != 0 and not child.row.is_ready
            return is_booting and now - max(child.forked_at, self._since or now) > self._patience

        return next(filter(is_late, places), None)

    def _stop(self, why: str) -> None:
        old = sum(child.pid != 0 and child.forked_at < (self._since or 0.0) for child in self._workers)
        log.error(
            "HUP: %s: the rolling restart stops here, %d workers go on with the old app",
            why,
            old,
            extra=fields("restart_failed", workers=old),
        )
        self._end()

    def _end(self) -> None:
        self._since = None
        if self._once_more and self._check_app is not None:
            self._once_more = False
            self._check(self._check_app)


def _recycle_one(workers: Sequence[WorkerChild]) -> None:
    for child in workers:
        reason = child.row.recycle_reason
        if reason is not RecycleReason.NONE:
            child.drain(reason.words)
            return
