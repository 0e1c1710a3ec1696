"""A worker process: a clerk with one connection, and as many jobs at a time as it has slots."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass

import setproctitle

from pgworker.app.registry import load_app
from pgworker.app.scope import job_here
from pgworker.config.settings import PoolSettings
from pgworker.errors import PgworkerError
from pgworker.linux import stacks
from pgworker.linux.board import Board
from pgworker.linux.memory import limit_data
from pgworker.linux.wake import wake
from pgworker.model.graces import Graces
from pgworker.observe import logs
from pgworker.observe.events import Reporter
from pgworker.worker.clerk import Clerk
from pgworker.worker.execution import SlotTransactions
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


def run_worker(dsn: str, app_path: str, settings: PoolSettings, place: WorkerPlace) -> int:
    """Work until drained; returns the exit code. Runs in a forked child, on its main thread."""
    logs.set_process(f"worker {place.index}")
    setproctitle.setproctitle(f"pgworker: worker {place.index} ({','.join(settings.queues)})")
    sys.setswitchinterval(_SWITCH_INTERVAL)
    logs.name_jobs(job_here)
    row = place.board.rows[place.index]
    stacks.install(place.stacks)
    leave_terminal()
    _drain_on_term(place)
    _isolate(settings, place.cpus)
    try:
        app = load_app(app_path)
        app.use_dsn(dsn)
        state = app.start_worker()
        logs.enable_own()
    except PgworkerError as error:
        log.error("%s", error, extra=logs.fields("worker_refused"))
        return error.exit_code
    name = f"pgworker worker {place.index}"
    runner = Runner(
        app,
        row,
        Graces(settings.cancel_grace, settings.term_grace, settings.lease_ttl),
        [_transactions(dsn, name, slot) for slot in range(settings.slots)],
        state,
    )
    clerk = Clerk(
        dsn=dsn,
        application_name=name,
        settings=settings,
        board=place.board,
        row=row,
        runner=runner,
        tasks=app.tasks,
        hooks=app.dead_letter_hooks,
        reporter=Reporter(place.index, socket.socket(fileno=place.events)),
        wake_read=place.wake_read,
        wake_write=place.wake_write,
        recycling=Recycling(Limits.draw(settings, row.worker_id), row),
    )
    thread = threading.Thread(target=clerk.work, name="clerk")
    log.info(
        "ready: %d tasks on %s, %d at a time",
        len(app.tasks),
        ", ".join(settings.queues),
        settings.slots,
        extra=logs.fields("worker_started", worker=place.index, worker_id=row.worker_id, task_count=len(app.tasks)),
    )
    row.set_ready()  # before anything is claimed: who is not ready may be killed without a loss
    thread.start()
    runner.run_jobs(clerk.wake)
    thread.join()
    app.stop_worker(state)
    app.close()
    return clerk.failure.exit_code if clerk.failure is not None else 0


def _transactions(dsn: str, name: str, slot: int) -> SlotTransactions:
    title = f"{name} slot {slot} transaction"
    return SlotTransactions(JobTransactions(dsn, title), AsyncJobTransactions(dsn, title))


def _drain_on_term(place: WorkerPlace) -> None:
    """TERM sent to this worker alone drains it, just as the master asks it to."""
    row, pipe = place.board.rows[place.index], place.wake_write

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
