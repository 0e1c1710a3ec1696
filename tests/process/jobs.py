"""The app of the pools under test: handlers that say in a ledger when they run, and die, hang or write as asked.

The ledger and the gates are files in `directory`. A gate is open once the file of its name exists.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import psycopg

from pgworker import App, Backoff, Context

app = App()
_SOON = Backoff(base=0.05, cap=0.2)
_LOOK = 0.01  # seconds between two looks at a gate


def note(ctx: Context, directory: str, event: str, name: str) -> None:
    """Append a line to the ledger, in one write: whole also when the next instruction kills this process."""
    line = f"{event} {name} {ctx.job.execution} {os.getpid()}\n"
    ledger = os.open(Path(directory, "ledger"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(ledger, line.encode())
    finally:
        os.close(ledger)


def wait_for_gate(directory: str, name: str) -> None:
    while not Path(directory, name).exists():
        time.sleep(_LOOK)


@app.task(backoff=_SOON)
def quick(ctx: Context, directory: str, name: str, seconds: float = 0.0) -> None:
    """Take a moment, and no more."""
    note(ctx, directory, "start", name)
    time.sleep(seconds)


@app.task(backoff=_SOON)
def hold(ctx: Context, directory: str, name: str) -> None:
    """Run until the gate opens, deaf to everything else."""
    note(ctx, directory, "start", name)
    wait_for_gate(directory, name)
    note(ctx, directory, "end", name)


@app.task(backoff=_SOON)
def cooperate(ctx: Context, directory: str, name: str) -> None:
    """Run until asked to stop."""
    note(ctx, directory, "start", name)
    ctx.wait_cancelled(60)
    note(ctx, directory, "stop", name)
    ctx.raise_if_cancelled()


@app.task(backoff=_SOON)
def hold_the_gil(ctx: Context, directory: str, name: str, seconds: float) -> None:
    """Sleep in C without letting another thread of this process run."""
    note(ctx, directory, "start", name)
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))
    note(ctx, directory, "end", name)


@app.task(backoff=_SOON)
def lock_up_the_gil(ctx: Context, directory: str, name: str) -> None:
    """Wait in C, for ever and with the GIL, for a mutex of one's own; no signal ends that."""
    note(ctx, directory, "start", name)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@app.task(backoff=_SOON)
def leave_a_child(ctx: Context, directory: str, name: str) -> None:
    """Start a process that nobody waits for."""
    note(ctx, directory, "start", name)
    os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)


@app.task(backoff=_SOON)
def die(ctx: Context, directory: str, name: str, how: str, executions: int = 1) -> None:
    """End the process in the first so many executions."""
    note(ctx, directory, "start", name)
    if ctx.job.execution > executions:
        return
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)


@app.task(backoff=_SOON)
def effect(ctx: Context, directory: str, name: str, then: str = "") -> None:
    """Write a row in the job's own transaction; in its first execution, go wrong as asked."""
    note(ctx, directory, "start", name)
    goes_wrong = ctx.job.execution == 1
    if goes_wrong and then == "wait":
        wait_for_gate(directory, name)
    with ctx.transaction() as connection:
        connection.execute("insert into effect values (%s, %s)", [ctx.job.id, ctx.job.execution])
        if goes_wrong and then == "raise":
            raise ValueError("before the commit")
        if goes_wrong and then == "roll back":
            raise psycopg.Rollback
        if goes_wrong and then == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if goes_wrong and then == "raise after":
        raise ValueError("after the commit")
