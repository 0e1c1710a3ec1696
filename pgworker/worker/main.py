"""A worker process: a clerk with one connection, and as many jobs at a time as it has slots."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from hashlib import sha256
from types import SimpleNamespace

import setproctitle

from pgworker.app.app import App
from pgworker.app.registry import load_app
from pgworker.app.scope import job_here
from pgworker.config.settings import PoolSettings
from pgworker.errors import PgworkerError
from pgworker.linux import stacks
from pgworker.linux.board import Board
from pgworker.linux.memory import limit_data
from pgworker.linux.row import BoardRow
from pgworker.linux.wake import wake
from pgworker.model.graces import Graces
from pgworker.observe import logs
from pgworker.observe.events import Reporter
from pgworker.worker.alarm import Alarm
from pgworker.worker.clerk import Clerk
from pgworker.worker.execution import SlotTransactions
from pgworker.worker.link import Link
from pgworker.worker.recycle import Limits, Recycling
from pgworker.worker.runner import Runner
from pgworker.worker.terminal import leave_terminal
from pgworker.worker.transaction import JobTransactions
from pgworker.worker.transaction_async import AsyncJobTransactions

_SWITCH_INTERVAL = 0.0005
"""Seconds: how soon the clerk gets the GIL from a busy handler. Python's 5 ms would add to every claim and settle."""

log = logs.logger("worker")


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker inherits from the master: its row of the board, its descriptors, its CPUs (none named: all)."""

    board: Board
    index: int
    wake_read: int
    wake_write: int
    events: int
    stacks: int
    cpus: frozenset[int] = frozenset()

    @property
    def row(self) -> BoardRow:
        return self.board.rows[self.index]


class Worker:
    """The runner, on the main thread, and the clerk, in one of its own, which stops it in the end."""

    def __init__(self, dsn: str, app: App, state: SimpleNamespace, settings: PoolSettings, place: WorkerPlace) -> None:
        name, row = f"pgworker worker {place.index}", place.row
        row.tasks_hash = int.from_bytes(sha256("\n".join(sorted(app.tasks)).encode()).digest()[:8], "big")
        self._alarm = Alarm(place.wake_read, place.wake_write)
        self._runner = Runner(
            app,
            row,
            Graces(settings.cancel_grace, settings.term_grace, settings.lease_ttl),
            [_transactions(dsn, name, slot) for slot in range(settings.slots)],
            state,
        )
        self._clerk = Clerk(
            settings=settings,
            board=place.board,
            row=row,
            tasks=app.tasks,
            runner=self._runner,
            link=Link(dsn, name, settings, row, app.tasks, app.dead_letter_hooks),
            alarm=self._alarm,
            reporter=Reporter(place.index, socket.socket(fileno=place.events)),
            recycling=Recycling(Limits.draw(settings, row.worker_id), row),
        )

    def work(self) -> int:
        """Until drained; returns the exit code."""
        thread = threading.Thread(target=self._clerk.work, name="clerk")
        thread.start()
        self._runner.run_jobs(self._alarm.wake)
        thread.join()
        return 0 if self._clerk.failure is None else self._clerk.failure.exit_code


def run_worker(dsn: str, app_path: str, settings: PoolSettings, place: WorkerPlace) -> int:
    """Work until drained; returns the exit code. Runs in a forked child, on its main thread."""
    _become_worker(settings, place)
    try:
        app = load_app(app_path)
        app.use_dsn(dsn)
        gc.collect()
        gc.freeze()  # what the import has made stays, so no collection need look at it
        state = app.start_worker()
        logs.enable_own()
    except PgworkerError as error:
        log.error("%s", error, extra=logs.fields("worker_refused"))
        return error.exit_code
    worker = Worker(dsn, app, state, settings, place)
    log.info(
        "ready: %d tasks on %s, %d at a time",
        len(app.tasks),
        ", ".join(settings.queues),
        settings.slots,
        extra=logs.fields(
            "worker_started", worker=place.index, worker_id=place.row.worker_id, task_count=len(app.tasks)
        ),
    )
    place.row.set_ready()  # before anything is claimed: who is not ready may be killed without a loss
    code = worker.work()
    app.stop_worker(state)
    app.close()
    return code


def _become_worker(settings: PoolSettings, place: WorkerPlace) -> None:
    """What this process is called, what it does at a signal, and what of the host it takes."""
    logs.set_process(f"worker {place.index}")
    setproctitle.setproctitle(f"pgworker: worker {place.index} ({','.join(settings.queues)})")
    sys.setswitchinterval(_SWITCH_INTERVAL)
    logs.name_jobs(job_here)
    stacks.install(place.stacks)
    leave_terminal()
    _drain_on_term(place)
    _isolate(settings, place.cpus)


def _transactions(dsn: str, name: str, slot: int) -> SlotTransactions:
    title = f"{name} slot {slot} transaction"
    return SlotTransactions(JobTransactions(dsn, title), AsyncJobTransactions(dsn, title))


def _drain_on_term(place: WorkerPlace) -> None:
    """TERM sent to this worker alone drains it, just as the master asks it to."""
    row, pipe = place.row, place.wake_write

    def drain(_number: int, _frame: object) -> None:
        row.ask_drain()
        wake(pipe)

    signal.signal(signal.SIGTERM, drain)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def _isolate(settings: PoolSettings, cpus: frozenset[int]) -> None:
    """Keep this worker from taking what the others and the rest of the host need."""
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:  # taken out of our cpuset since the start
            log.warning(
                "can't stay on CPU %s: %s; it runs on any",
                ",".join(map(str, sorted(cpus))),
                error.strerror,
                extra=logs.fields("cpus_refused"),
            )
    if settings.nice:
        os.nice(settings.nice)
    if settings.memory_limit is not None:
        limit_data(settings.memory_limit)
