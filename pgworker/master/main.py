"""The master: forks, reaps, kills, and answers signals. One thread, standard library only.

It knows no database, no HTTP and no app: a resolver or a lock that stalls must not keep it from killing what is late.
PostgreSQL's postmaster draws the same line.
"""

from __future__ import annotations

import logging
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from pgworker.config.settings import PoolSettings
from pgworker.errors import EXIT_BUG, EXIT_DRAIN_TIMED_OUT
from pgworker.linux import process
from pgworker.linux.control import Death, Shared
from pgworker.linux.pidfd import Exit, kill_group, next_exit, reap
from pgworker.linux.signals import SignalQueue
from pgworker.linux.terminal import ControllingTerminal
from pgworker.master.causes import explain_exit, judge_slots
from pgworker.master.children import Forker, MonitorChild, RunMonitor, RunWorker, WorkerChild
from pgworker.master.count import Count
from pgworker.master.deaths import Deaths
from pgworker.master.drain import LAST_CALL, Drain
from pgworker.master.dumps import Dumps
from pgworker.master.fields import fields
from pgworker.master.ladders import Ladders
from pgworker.master.pause import pause_or_resume
from pgworker.master.readiness import Readiness
from pgworker.master.restarts import Restarts
from pgworker.master.rolling import CheckApp, Rolling
from pgworker.master.service import Service, ServiceKeeper
from pgworker.master.size import Size
from pgworker.master.systemd import Systemd, describe_drain, describe_pool
from pgworker.model.graces import Graces
from pgworker.model.state import Outcome

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that end a pool."""

OBEYED_LATER = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that wait in the queue while a pool is put together."""

_TICK = 0.1  # seconds: how soon a timeout or the next step of a kill is noticed
_IDLE_TICK = 0.25  # seconds while no job runs: of one that begins meanwhile, the first step may be so late
_MONITOR_STUCK = 30.0  # seconds without a beat on the board after which a monitor is replaced
_FORK_RETRY = 1.0  # seconds
_RECORDING = 5.0  # seconds for the monitor to record what was killed at the end
_MONITOR_PAUSE = 1 / 6  # of the life of a lease, renewed at a third: the longest wait for the next monitor
_HEALTHY_AFTER = 10.0  # seconds a monitor must live for its next start to be at once

log = logging.getLogger("pgworker.master")


@dataclass(frozen=True, slots=True)
class PoolParts:
    """All that a master is given: what is shared, and what its children run. `check_app` is None when the app is
    imported in the master, where it can't be imported anew."""

    settings: PoolSettings
    shared: Shared
    signals: SignalQueue
    run_worker: RunWorker
    run_monitor: RunMonitor
    check_app: CheckApp | None = None
    service: Service | None = None
    restart_service: Callable[[], Service] | None = None
    start_watcher: Callable[[], Service] | None = None


class Master:
    """One pool, from the first fork to the last reap."""

    def __init__(self, parts: PoolParts) -> None:
        settings, shared = parts.settings, parts.shared
        self._settings = settings
        self._shared = shared
        self._signals = parts.signals
        self._service = ServiceKeeper("the private PostgreSQL", parts.service, parts.restart_service)
        self._watcher = ServiceKeeper("the watcher of --reload", None, parts.start_watcher)
        self._forker = Forker(shared, parts.run_worker, parts.run_monitor)
        self._workers = [
            WorkerChild(row, write, is_wanted=row.index < settings.workers)
            for row, (_, write) in zip(shared.board.rows, shared.wakes, strict=True)
        ]
        self._monitor = MonitorChild()
        self._deaths = Deaths(self._monitor)
        graces = Graces(settings.cancel_grace, settings.term_grace, settings.lease_ttl)
        self._ladders = Ladders(self._workers, shared.stacks, graces, settings.lease_ttl)
        self._readiness = Readiness(self._workers, shared.board, settings.queues)
        self._systemd = Systemd()
        self._drain = Drain(self._workers, settings.drain_timeout, self._systemd.stopping)
        self._restarts = Restarts(settings.restart_backoff)
        job_time = settings.drain_timeout if settings.reload else None
        self._rolling = Rolling(self._workers, parts.check_app, settings.boot_timeout, job_time)
        self._size = Size(self._workers)
        self._dumps = Dumps(self._workers, shared.stacks, self._monitor, shared.monitor_stack)
        self._count = Count()
        self._terminal = ControllingTerminal()
        self._gone_at: float | None = None
        self._exit_code: int | None = None
        self._oom_kills = process.oom_kills()

    def run(self) -> int:
        """Run the pool until a signal ends it; returns the exit code."""
        self._signals.install((*ENDS, *OBEYED_LATER, signal.SIGCHLD))
        try:
            while not self._is_over():
                self._shared.board.workers_wanted = 0 if self._drain.is_on else int(self._size)
                self._start_what_is_missing()
                self._wait()
                self._obey_signals()
                self._reap()
                self._hear_monitor()
                self._ladders.go_on()
                self._drain.enforce(self._ladders.killed)
                self._dumps.collect(self._ladders.pids())
                if not self._drain.is_on:
                    self._rolling.go_on(had_worker=self._readiness.had_worker)
                    if self._readiness.announce(time.monotonic(), int(self._size)):
                        self._systemd.ready()
                self._tell_systemd()
            return self._finish()
        finally:
            self._signals.close(ignored=ENDS)  # who asks for the end once more gets the exit code of the first time

    # -- one round

    def _start_what_is_missing(self) -> None:
        now = time.monotonic()
        self._service.revive(now)
        self._watcher.revive(now)
        if not self._monitor.pid and now >= self._monitor.start_at:
            self._fork(self._monitor, now)
        self._deaths.report_due(now)
        if self._drain.is_on:
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
                self._forker.fork_monitor(child, self._deaths.report_all)
        except OSError as error:
            child.start_at = now + _FORK_RETRY
            log.error("can't fork: %s; trying again in a second", error, extra=fields("fork_failed"))

    def _wait(self) -> None:
        with selectors.PollSelector() as selector:  # unlike epoll, needs no descriptor: there may be none left
            selector.register(self._signals, selectors.EVENT_READ)
            if self._monitor.channel is not None and not self._monitor.channel.is_closed:
                selector.register(self._monitor.channel, selectors.EVENT_READ)
            selector.select(_IDLE_TICK if self._is_idle() else _TICK)

    def _is_idle(self) -> bool:
        """Whether no job runs, and nothing goes on either that is looked at each time."""
        goes_on = self._ladders.is_any_running or self._drain.is_on or self._rolling.is_on
        return self._readiness.is_announced and not goes_on

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
            elif not self._rolling.bury_check(exit_) and not self._watcher.bury(exit_):
                self._service.bury(exit_)

    def _hear_monitor(self) -> None:
        channel = self._monitor.channel
        if channel is None or channel.is_closed:
            return
        for message in channel.receive():
            if message["kind"] == "ack":
                self._deaths.acknowledge(message["worker_id"])
                for child in self._workers:
                    if child.awaits_ack == message["worker_id"]:
                        child.awaits_ack = None
        stuck_ns = time.monotonic_ns() - self._shared.board.monitor_beat_ns
        if self._monitor.pid and min(stuck_ns / 1e9, time.monotonic() - self._monitor.forked_at) > _MONITOR_STUCK:
            log.error(
                "the monitor has not moved for %.0f s: it is replaced", stuck_ns / 1e9, extra=fields("monitor_stuck")
            )
            kill_group(self._monitor.pid, signal.SIGKILL)

    # -- signals

    def _obey_signals(self) -> None:
        for number in self._signals.drain():
            if number is signal.SIGHUP and self._terminal.is_gone() and not self._signals.was_ignored(number):
                self._rolling.abandon()
                self._drain.begin("the terminal is gone")
            elif number in ENDS:
                self._rolling.abandon()
                self._end(number)
                self._monitor.start_at = 0.0  # should it be missing: who ends now is to be recorded
            elif number is signal.SIGUSR1:
                self._dumps.ask(self._ladders.pids())
            elif number in OBEYED_LATER and self._drain.is_on:
                said = number.name.removeprefix("SIG")
                log.info("%s is ignored: the pool drains", said, extra=fields("signal_ignored"))
            elif number in OBEYED_LATER:
                self._change(number)

    def _end(self, number: signal.Signals) -> None:
        if number is signal.SIGTERM:
            self._drain.begin("TERM")
        elif number is signal.SIGINT:
            self._drain.interrupt()
        else:
            self._drain.stop_now("QUIT")

    def _change(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            self._rolling.ask()
        elif number is signal.SIGTTIN:
            self._size.grow()
        elif number is signal.SIGTTOU:
            self._size.shrink()
        else:
            pause_or_resume(self._shared.board, self._workers)

    def _tell_systemd(self) -> None:
        now = time.monotonic()
        self._systemd.alive(now)
        self._systemd.status(now, self._describe(now))

    def _describe(self, now: float) -> str:
        """What `systemctl status` shows."""
        running = sum(len(child.row.runs()) for child in self._workers if child.pid)
        if self._drain.until is not None:
            return describe_drain(sum(child.pid != 0 for child in self._workers), running, self._drain.until - now)
        ready = sum(child.is_wanted and child.is_up for child in self._workers)
        remarks = {
            "the database can't be reached": self._readiness.is_announced and not self._shared.board.is_connected,
            "claiming is paused": self._shared.board.is_paused,
            "rolling restart": self._rolling.is_on,
        }
        return describe_pool(ready, int(self._size), running, remarks)

    # -- deaths

    def _bury_worker(self, child: WorkerChild, exit_: Exit) -> None:
        runs = child.row.runs()
        charge = self._ladders.take(exit_.pid, runs, by_signal=exit_.signal is not None)
        how, verdict = explain_exit(
            exit_,
            child.row.index,
            charge.killed_for,
            self._saw_oom(exit_),
            in_a_job=bool(runs),
            was_draining=child.row.is_draining,
            asked=child.asked,
            given_up=child.given_up,
        )
        clean = exit_.code == 0 and not runs and child.row.is_draining
        stack = self._shared.stacks[child.row.index].read()
        verdicts = judge_slots(child.row.slots, runs, charge.culprits, verdict, stack, time.monotonic_ns())
        outcome = Outcome.SUCCEEDED if clean else verdict
        death = Death(child.row.index, exit_.pid, str(child.row.worker_id), how, outcome.value, verdicts, stack)
        was_ready, done = child.row.is_ready, child.row.jobs_done
        self._count.add(done + len(runs), child.row.runs_failed + len(runs))
        child.pid, child.row.pid = 0, 0
        child.awaits_ack = death.worker_id
        self._deaths.report(death)
        self._follow_up(child, exit_, how, was_ready=was_ready, done=done, clean=clean)

    def _follow_up(self, child: WorkerChild, exit_: Exit, how: str, *, was_ready: bool, done: int, clean: bool) -> None:
        """Who comes after a worker that has ended, if anybody."""
        if not was_ready and not self._readiness.had_worker and not (self._drain.is_on and clean):
            self._give_up_on_a_broken_app(exit_)
        if self._drain.is_on:
            return
        level = logging.INFO if clean else logging.WARNING
        told = fields("worker_ended", worker=child.row.index, worker_pid=exit_.pid, jobs=done)
        if not child.is_wanted:
            log.log(level, "%s", how, extra=told)
            return
        when = self._restarts.plan(child, exit_, done=done, clean=clean)
        log.log(level, "%s; a new one starts %s", how, when, extra=told)
        self._rolling.note_end(child, exit_, was_ready=was_ready, clean=clean)

    def _give_up_on_a_broken_app(self, exit_: Exit) -> None:
        code = self._restarts.give_up(exit_, int(self._size))
        if code is None:
            return
        self._exit_code = code
        if not self._drain.is_on:
            log.error(
                "no worker could start: see the lines above; the pool ends with %d",
                self._exit_code,
                extra=fields("pool_failed", exit_code=self._exit_code),
            )
            self._rolling.abandon()
            self._drain.end_now()

    def _bury_monitor(self, exit_: Exit) -> None:
        lived = time.monotonic() - self._monitor.forked_at
        self._monitor.pid = 0
        self._monitor.failures = 0 if lived > _HEALTHY_AFTER else self._monitor.failures + 1
        delay = self._settings.restart_backoff.delay(self._monitor.failures, 0.0) if self._monitor.failures > 1 else 0.0
        longest = _FORK_RETRY if self._drain.is_on else self._settings.lease_ttl * _MONITOR_PAUSE  # leases outlast it
        self._monitor.start_at = time.monotonic() + min(delay, longest)
        log.warning(
            "the monitor (pid %d): %s; a new one starts",
            exit_.pid,
            exit_.describe(),
            extra=fields("monitor_ended", worker_pid=exit_.pid),
        )

    def _saw_oom(self, exit_: Exit) -> bool:
        before, self._oom_kills = self._oom_kills, process.oom_kills()
        return exit_.signal == signal.SIGKILL and process.was_oom_killed(before, self._oom_kills)

    # -- the end

    def _is_over(self) -> bool:
        """Draining, every worker gone, and either all recorded or no time left for it."""
        if self._drain.until is None or any(child.pid for child in self._workers):
            return False
        now = time.monotonic()
        if self._gone_at is None:
            self._gone_at = now
        until = max(
            self._gone_at + LAST_CALL, min(self._gone_at + _RECORDING, self._drain.until + _RECORDING - LAST_CALL)
        )
        return not self._deaths or now > until

    def _finish(self) -> int:
        """Nothing runs any more: end the monitor, then what was started before it."""
        if self._monitor.pid:
            if self._monitor.channel is not None:
                self._monitor.channel.send("stop")
            if not self._wait_for(self._monitor.pid, 3.0):
                kill_group(self._monitor.pid, signal.SIGKILL)
                self._wait_for(self._monitor.pid, 1.0)
        self._watcher.stop()
        self._service.stop()
        if self._deaths:
            log.error(
                "%d ends of workers could not be recorded: their jobs run again when their leases are over",
                len(self._deaths),
                extra=fields("deaths_unrecorded", workers=len(self._deaths)),
            )
        if self._exit_code is not None:
            return self._exit_code
        self._count.tell(in_time=not self._drain.timed_out)
        return EXIT_DRAIN_TIMED_OUT if self._drain.timed_out or self._deaths else 0

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
        log.exception(
            "the master failed: this is a bug in pgworker; its children end with it", extra=fields("master_crashed")
        )
        return EXIT_BUG
