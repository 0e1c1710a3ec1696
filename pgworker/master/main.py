"""The master: forks, reaps, kills, and answers signals. One thread, standard library only.

It knows no database, no HTTP and no app: a resolver or a lock that stalls must not keep it from killing what is late.
PostgreSQL's postmaster draws the same line.
"""

from __future__ import annotations

import logging
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pgworker.config.settings import PoolSettings
from pgworker.errors import EXIT_BUG, EXIT_CONFIGURATION, EXIT_CRASH_LOOP, EXIT_DRAIN_TIMED_OUT, PgworkerError
from pgworker.linux import process
from pgworker.linux.board import Run
from pgworker.linux.control import Death, Shared
from pgworker.linux.pidfd import Exit, kill_group, next_exit, reap
from pgworker.linux.sd_notify import notify
from pgworker.linux.signals import SignalQueue
from pgworker.linux.wake import wake
from pgworker.master.causes import explain_exit, judge_slots
from pgworker.master.children import Forker, MonitorChild, RunMonitor, RunWorker, WorkerChild
from pgworker.master.deadlines import Ladder, climb, find_overdue, is_stopped_past_lease
from pgworker.model.graces import SHUTDOWN_GRACE, Graces
from pgworker.model.state import CancelReason, Outcome

_TICK = 0.1  # seconds
_MONITOR_STUCK = 30.0  # seconds without a beat on the board after which a monitor is replaced
_LAST_CALL = 1.0  # seconds after the end of a drain at which whoever is still there is killed
_FORK_RETRY = 1.0  # seconds
_REPORT_AGAIN = 2.0  # seconds after which the monitor is told once more of a death that it has not acknowledged
_RECORDING = 5.0  # seconds for the monitor to record what was killed at the end
_SECOND_INTERRUPT = 1.0  # seconds: two Ctrl-C within it are one
_BOOT_FAILURES = 3  # of every worker, none ever ready: the app is broken, not unlucky
_SERVICE_RETRY = 5.0  # seconds between two tries to start the private PostgreSQL again
_MONITOR_PAUSE = 1 / 6  # of the life of a lease, renewed at a third: the longest wait for the next monitor
_HEALTHY_AFTER = 10.0  # seconds a monitor must live for its next start to be at once

log = logging.getLogger("pgworker.master")


class Service(Protocol):
    """A child that is started before the pool and stopped after it: the private PostgreSQL."""

    @property
    def pid(self) -> int: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PoolParts:
    """All that a master is given: what is shared, and what its children run."""

    settings: PoolSettings
    shared: Shared
    run_worker: RunWorker
    run_monitor: RunMonitor
    service: Service | None = None
    restart_service: Callable[[], Service] | None = None


class Master:
    """One pool, from the first fork to the last reap."""

    def __init__(self, parts: PoolParts) -> None:
        settings = parts.settings
        self._settings = settings
        self._shared = parts.shared
        self._service = parts.service
        self._restart_service = parts.restart_service
        self._forker = Forker(parts.shared, parts.run_worker, parts.run_monitor)
        self._graces = Graces(settings.cancel_grace, settings.term_grace, settings.lease_ttl)
        self._workers = [WorkerChild(row) for row in parts.shared.board.rows]
        self._monitor = MonitorChild()
        self._ladders: dict[tuple[int, int], Ladder] = {}
        """By pid and slot."""
        self._unrecorded: dict[str, Death] = {}
        self._signals = SignalQueue()
        self._drain_until: float | None = None
        self._interrupted_at: float | None = None
        self._quick = False
        self._timed_out = False
        self._gone_at: float | None = None
        self._killed: dict[int, CancelReason] = {}
        self._service_start_at = 0.0
        self._report_at = 0.0
        self._was_ready = False
        self._boot_exits: list[int] = []
        self._exit_code: int | None = None
        self._oom_kills = process.oom_kills()

    def run(self) -> int:
        """Run the pool until a signal ends it; returns the exit code."""
        self._signals.install((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        try:
            while not self._is_over():
                self._start_what_is_missing()
                self._wait()
                self._obey_signals()
                self._reap()
                self._hear_monitor()
                self._enforce_deadlines()
                self._enforce_drain()
                self._announce_ready()
            return self._finish()
        finally:
            self._signals.close()

    # -- one round

    def _start_what_is_missing(self) -> None:
        now = time.monotonic()
        if self._service is None and self._restart_service is not None and now >= self._service_start_at:
            self._revive_service(self._restart_service, now)
        if not self._monitor.pid and now >= self._monitor.start_at:
            self._fork(self._monitor, now)
            self._report_at = now
        if now >= self._report_at:  # to a new monitor at once; to a busy one again, should a message not have fitted
            self._report_at = now + _REPORT_AGAIN
            for death in self._unrecorded.values():
                self._report(death)
        if self._is_draining:
            return
        for child in self._workers:
            if child.is_startable and now >= child.start_at:
                self._fork(child, now)

    def _fork(self, child: WorkerChild | MonitorChild, now: float) -> None:
        """No process or descriptor to be had is no reason to end the others: try again in a second."""
        try:
            if isinstance(child, WorkerChild):
                self._forker.fork_worker(child)
            else:
                self._forker.fork_monitor(child)
        except OSError as error:
            child.start_at = now + _FORK_RETRY
            log.error("can't fork: %s; trying again in a second", error)

    def _wait(self) -> None:
        with selectors.PollSelector() as selector:  # unlike epoll, needs no descriptor: there may be none left
            selector.register(self._signals, selectors.EVENT_READ)
            if self._monitor.channel is not None and not self._monitor.channel.is_closed:
                selector.register(self._monitor.channel, selectors.EVENT_READ)
            selector.select(_TICK)

    def _obey_signals(self) -> None:
        for number in self._signals.drain():
            if number is signal.SIGTERM:
                self._drain("TERM")
            elif number is signal.SIGINT:
                self._interrupt()

    def _reap(self) -> None:
        """Every dead child, strangers too: as PID 1 of a container we inherit orphans."""
        while (exit_ := next_exit()) is not None:
            worker = next((child for child in self._workers if child.pid == exit_.pid), None)
            if worker is not None:
                kill_group(exit_.pid, signal.SIGKILL)  # what it started and left behind
            reap(exit_.pid)
            if worker is not None:
                self._bury_worker(worker, exit_)
            elif exit_.pid == self._monitor.pid:
                self._bury_monitor(exit_)
            elif self._service is not None and exit_.pid == self._service.pid:
                self._bury_service(exit_)

    def _hear_monitor(self) -> None:
        channel = self._monitor.channel
        if channel is None or channel.is_closed:
            return
        for message in channel.receive():
            if message["kind"] == "ack":
                self._unrecorded.pop(message["worker_id"], None)
                for child in self._workers:
                    if child.awaits_ack == message["worker_id"]:
                        child.awaits_ack = None
        stuck_ns = time.monotonic_ns() - self._shared.board.monitor_beat_ns
        if self._monitor.pid and min(stuck_ns / 1e9, time.monotonic() - self._monitor.forked_at) > _MONITOR_STUCK:
            log.error("the monitor has not moved for %.0f s: it is replaced", stuck_ns / 1e9)
            kill_group(self._monitor.pid, signal.SIGKILL)

    def _enforce_deadlines(self) -> None:
        now_ns = time.monotonic_ns()
        for child in self._workers:
            if not child.pid:
                continue
            runs = child.row.runs()
            self._forget_those_that_stopped(child, runs)
            for run in runs:
                key = child.pid, run.slot
                ladder = self._ladders.get(key) or self._find_reason(child, run, now_ns)
                if ladder is not None:
                    stack = self._shared.stacks[child.row.index]
                    self._ladders[key] = climb(ladder, child.pid, stack, self._graces, now_ns)
            if not runs and is_stopped_past_lease(child.row, child.pid, now_ns, self._settings.lease_ttl):
                self._killed[child.pid] = CancelReason.LEASE_LOST
                kill_group(child.pid, signal.SIGKILL)

    def _forget_those_that_stopped(self, child: WorkerChild, runs: Sequence[Run]) -> None:
        """They stopped in time; a worker that has had SIGTERM drains."""
        sequences = {run.slot: run.sequence for run in runs}
        own = [(key, ladder) for key, ladder in self._ladders.items() if key[0] == child.pid]
        stopped = [key for key, ladder in own if sequences.get(key[1]) != ladder.run.sequence and not ladder.killed_ns]
        for key in stopped:
            del self._ladders[key]
        if stopped and len(stopped) == len(own):
            self._shared.stacks[child.row.index].clear()  # no evidence of how a later job ends

    def _find_reason(self, child: WorkerChild, run: Run, now_ns: int) -> Ladder | None:
        reason = child.row.cancel_reason(run.slot, run.sequence)
        if reason is CancelReason.NONE:
            reason = find_overdue(child.row, run, now_ns, self._settings.lease_ttl)
            if reason is CancelReason.NONE:
                return None
            child.row.ask_cancel(run, reason)
        return Ladder(run, reason, now_ns)

    def _enforce_drain(self) -> None:
        if self._drain_until is None:
            return
        left = self._drain_until - time.monotonic()
        if left > SHUTDOWN_GRACE:
            return
        for child in self._workers:
            if not child.pid:
                continue
            for run in child.row.runs():
                self._timed_out = True
                child.row.ask_cancel(run, CancelReason.SHUTDOWN)
            if left <= -_LAST_CALL:  # no handler, so no ladder, or one that is too long
                self._timed_out = True
                self._killed[child.pid] = CancelReason.SHUTDOWN
                kill_group(child.pid, signal.SIGKILL)

    def _announce_ready(self) -> None:
        if self._was_ready or self._is_draining:
            return
        if any(child.pid and child.row.is_ready for child in self._workers):
            self._was_ready = True
            queues = ", ".join(self._settings.queues)
            log.info("the pool is ready: %d workers on %s", len(self._workers), queues)
            notify("READY=1")

    # -- signals

    @property
    def _is_draining(self) -> bool:
        return self._drain_until is not None

    def _drain(self, why: str) -> None:
        """Stop claiming, hand back, let running jobs finish. A second TERM changes nothing."""
        if self._is_draining:
            return
        running = sum(len(child.row.runs()) for child in self._workers if child.pid)
        log.info("%s: draining, %d running jobs have %g s", why, running, self._settings.drain_timeout)
        notify("STOPPING=1")
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        for child in self._workers:
            if child.pid:
                child.row.ask_drain()
                self._wake(child)

    def _interrupt(self) -> None:
        """Ctrl-C: drain; again, a second later: stop now; a third time: kill."""
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            self._drain("INT (again: stop now)")
        elif now - self._interrupted_at > _SECOND_INTERRUPT:
            self._interrupted_at = now
            if not self._quick:
                log.warning("INT again: running jobs are stopped and go back to the queue, uncharged")
                self._quick = True
                self._drain_until = now + SHUTDOWN_GRACE
            else:
                log.warning("INT a third time: every worker is killed")
                self._drain_until = now - _LAST_CALL

    def _wake(self, child: WorkerChild) -> None:
        wake(self._shared.wakes[child.row.index][1])

    # -- deaths

    def _bury_worker(self, child: WorkerChild, exit_: Exit) -> None:
        ladders = {slot: self._ladders.pop((pid, slot)) for pid, slot in list(self._ladders) if pid == exit_.pid}
        killed_for = self._killed.pop(exit_.pid, CancelReason.NONE)
        culprits = {slot: ladder.reason for slot, ladder in ladders.items() if ladder.dumped_ns}
        if culprits and exit_.signal is not None:  # a forced dump may kill by SIGSEGV
            killed_for = next(iter(culprits.values()))
        how, verdict = explain_exit(exit_, child.row.index, killed_for, self._saw_oom(exit_))
        runs = child.row.runs()
        clean = exit_.code == 0 and not runs
        stack = self._shared.stacks[child.row.index].read()
        if exit_.signal is None:
            culprits = {}
        verdicts = judge_slots(child.row.slots, runs, culprits, verdict, stack)
        outcome = Outcome.SUCCEEDED if clean else verdict
        death = Death(child.row.index, exit_.pid, str(child.row.worker_id), how, outcome.value, verdicts, stack)
        was_ready, done = child.row.is_ready, child.row.jobs_done
        child.pid, child.row.pid = 0, 0
        child.awaits_ack = death.worker_id
        self._unrecorded[death.worker_id] = death
        self._report(death)
        if self._is_draining and clean:
            return
        self._plan_restart(child, exit_, how, was_ready=was_ready, done=done, clean=clean)

    def _plan_restart(
        self, child: WorkerChild, exit_: Exit, how: str, *, was_ready: bool, done: int, clean: bool
    ) -> None:
        if not was_ready and not self._was_ready:
            self._boot_exits.append(exit_.code if exit_.code is not None else EXIT_CRASH_LOOP)
            self._give_up_on_a_broken_app()
        proven = clean or (done > 0 and exit_.signal is not None)  # by a bug of ours (an exit code) it is not
        child.failures = 0 if proven else child.failures + 1
        delay = self._settings.restart_backoff.delay(child.failures, 0.0) if child.failures else 0.0
        child.start_at = time.monotonic() + delay
        if not self._is_draining:
            when = f"in {delay:g} s" if delay else "at once"
            log.log(logging.INFO if clean else logging.WARNING, "%s; a new one starts %s", how, when)

    def _give_up_on_a_broken_app(self) -> None:
        """No worker has ever been ready: what is wrong with the app is wrong for all of them."""
        code = self._boot_exits[-1]
        if code == EXIT_CONFIGURATION or len(self._boot_exits) >= _BOOT_FAILURES * len(self._workers):
            self._exit_code = code if code == EXIT_CONFIGURATION else EXIT_CRASH_LOOP
            if not self._is_draining:
                log.error("no worker could start: see the lines above; the pool ends with %d", self._exit_code)
                self._drain_until = time.monotonic() - _LAST_CALL

    def _bury_monitor(self, exit_: Exit) -> None:
        lived = time.monotonic() - self._monitor.forked_at
        self._monitor.pid = 0
        self._monitor.failures = 0 if lived > _HEALTHY_AFTER else self._monitor.failures + 1
        delay = self._settings.restart_backoff.delay(self._monitor.failures, 0.0) if self._monitor.failures > 1 else 0.0
        longest = self._settings.lease_ttl * _MONITOR_PAUSE  # leases must outlast it
        self._monitor.start_at = time.monotonic() + min(delay, longest)
        log.warning("the monitor (pid %d): %s; a new one starts", exit_.pid, exit_.describe())

    def _saw_oom(self, exit_: Exit) -> bool:
        before, self._oom_kills = self._oom_kills, process.oom_kills()
        return exit_.signal == signal.SIGKILL and process.was_oom_killed(before, self._oom_kills)

    def _report(self, death: Death) -> None:
        if self._monitor.channel is not None:
            self._monitor.channel.send_death(death)

    # -- the private PostgreSQL

    def _bury_service(self, exit_: Exit) -> None:
        log.error("the private PostgreSQL (pid %d): %s; it is started again", exit_.pid, exit_.describe())
        self._service = None

    def _revive_service(self, restart: Callable[[], Service], now: float) -> None:
        self._service_start_at = now + _SERVICE_RETRY
        try:
            self._service = restart()
        except PgworkerError as error:
            log.error("the private PostgreSQL does not start: %s", error)

    # -- the end

    def _is_over(self) -> bool:
        """Draining, every worker gone, and either all recorded or no time left for it."""
        if self._drain_until is None or any(child.pid for child in self._workers):
            return False
        now = time.monotonic()
        if self._gone_at is None:
            self._gone_at = now
        until = max(
            self._gone_at + _LAST_CALL, min(self._gone_at + _RECORDING, self._drain_until + _RECORDING - _LAST_CALL)
        )
        return not self._unrecorded or now > until

    def _finish(self) -> int:
        """Nothing runs any more: end the monitor, then what was started before it."""
        if self._monitor.pid:
            if self._monitor.channel is not None:
                self._monitor.channel.send("stop")
            if not self._wait_for(self._monitor.pid, 3.0):
                kill_group(self._monitor.pid, signal.SIGKILL)
                self._wait_for(self._monitor.pid, 1.0)
        if self._service is not None:
            self._service.stop()
        if self._unrecorded:
            log.error(
                "%d ends of workers could not be recorded: their leases run out by themselves", len(self._unrecorded)
            )
        if self._exit_code is not None:
            return self._exit_code
        if self._timed_out:
            log.warning("drained, but not in time: what still ran was stopped and went back to the queue, uncharged")
        if self._timed_out or self._unrecorded:
            return EXIT_DRAIN_TIMED_OUT
        log.info("drained")
        return 0

    def _wait_for(self, pid: int, seconds: float) -> bool:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            exit_ = next_exit()
            if exit_ is None:
                time.sleep(0.01)
                continue
            reap(exit_.pid)
            if exit_.pid == pid:
                return True
        return False


def run_pool(parts: PoolParts) -> int:
    """Run a pool in this process until it is told to stop; returns the exit code."""
    try:
        return Master(parts).run()
    except Exception:
        log.exception("the master failed: this is a bug in pgworker; its children end with it")
        return EXIT_BUG
