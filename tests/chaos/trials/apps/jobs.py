"""The app of the pools in trials: handlers that keep the ledger of `ledgers`, and wait, write or die as asked.

A pool runs in the directory of its ledger, and gates are named pipes there: who opens one to read it waits, without
looking again and again, until the trial opens it to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from pgworker import App, Backoff, Context
from tests.chaos.trials.ledgers import COMMITTED, END, START, note

app = App()
_SOON = Backoff(base=0.02, cap=0.1)
_OFTEN = 1000
"""Attempts: more than any storm charges a job with."""
_INSERT = "insert into chaos.effect values (%s, %s)"


@app.task(name="plain", backoff=_SOON, max_attempts=_OFTEN)
def plain(ctx: Context, seconds: float = 0.0) -> None:
    """Take so long."""
    note(ctx, START)
    if seconds:
        time.sleep(seconds)
    note(ctx, END)


@app.task(name="effect", backoff=_SOON, max_attempts=_OFTEN)
def effect(ctx: Context, seconds: float = 0.0) -> None:
    """Write a row in the job's own transaction, and say when that was acknowledged."""
    note(ctx, START)
    with ctx.transaction() as connection:
        connection.execute(_INSERT, [ctx.job.id, ctx.job.execution])
        if seconds:
            time.sleep(seconds)
        note(ctx, END)
    note(ctx, COMMITTED)


@app.task(name="plain_async", backoff=_SOON, max_attempts=_OFTEN)
async def plain_async(ctx: Context, seconds: float = 0.0) -> None:
    """As `plain`, on the event loop."""
    note(ctx, START)
    if seconds:
        await asyncio.sleep(seconds)
    note(ctx, END)


# -- behind a gate, in the first execution


def wait_at(gate: str) -> None:
    """Until somebody opens the pipe to write, however often this is interrupted."""
    with contextlib.suppress(FileNotFoundError):  # it is open, and gone
        os.close(os.open(gate, os.O_RDONLY))


async def wait_at_async(gate: str) -> None:
    """As `wait_at`: a look now and then whether somebody has, as a pipe can't tell an event loop."""
    while Path(gate).exists():
        await asyncio.sleep(0.05)


@app.task(name="gated", backoff=_SOON)
def gated(ctx: Context, gate: str) -> None:
    """Wait at the gate, deaf to all else."""
    note(ctx, START)
    if ctx.job.execution == 1:
        wait_at(gate)
    note(ctx, END)


@app.task(name="gated_async", backoff=_SOON)
async def gated_async(ctx: Context, gate: str) -> None:
    """As `gated`, on the event loop."""
    note(ctx, START)
    if ctx.job.execution == 1:
        await wait_at_async(gate)
    note(ctx, END)


@app.task(name="effect_gated", backoff=_SOON)
def effect_gated(ctx: Context, gate: str) -> None:
    """Wait with a row written in the job's own transaction; its COMMIT is the settle."""
    note(ctx, START)
    with ctx.transaction() as connection:
        connection.execute(_INSERT, [ctx.job.id, ctx.job.execution])
        if ctx.job.execution == 1:
            wait_at(gate)
        note(ctx, END)
    note(ctx, COMMITTED)


@app.task(name="effect_gated_async", backoff=_SOON)
async def effect_gated_async(ctx: Context, gate: str) -> None:
    """As `effect_gated`, on the event loop."""
    note(ctx, START)
    async with ctx.transaction_async() as connection:
        await connection.execute(_INSERT, [ctx.job.id, ctx.job.execution])
        if ctx.job.execution == 1:
            await wait_at_async(gate)
        note(ctx, END)
    note(ctx, COMMITTED)


# -- those that take their process with them, or more than that


@app.task(name="poison", backoff=_SOON, max_attempts=1)
def poison(ctx: Context, how: str) -> None:
    """End the process, or take more memory than there is."""
    note(ctx, START)
    end_by(how)


@app.task(name="poison_async", backoff=_SOON, max_attempts=1)
async def poison_async(ctx: Context, how: str) -> None:
    """As `poison`, on the event loop."""
    note(ctx, START)
    end_by(how)


def end_by(how: str) -> None:
    """exit, kill, segfault or memory."""
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "memory":
        taken: list[Any] = []
        while True:
            taken.append(bytearray(1 << 20))


@app.task(name="hold_the_gil", backoff=_SOON)
def hold_the_gil(ctx: Context, seconds: float) -> None:
    """Sleep in C, and let no other thread of this process run meanwhile."""
    note(ctx, START)
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))
    note(ctx, END)


@app.task(name="deaf", backoff=_SOON, max_attempts=1)
def deaf(ctx: Context) -> None:
    """Ignore SIGTERM, and go round for ever."""
    note(ctx, START)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


@app.task(name="multiply", backoff=_SOON, max_attempts=1)
def multiply(ctx: Context, children: int) -> None:
    """Fork children that fork children, all of them deaf to SIGTERM, and die."""
    note(ctx, START)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(children):
        if os.fork() == 0:
            os.fork()
            time.sleep(1000)
            os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


_leaked: list[int] = []


@app.task(name="leak", backoff=_SOON, max_attempts=1)
def leak(ctx: Context) -> None:
    """Take all descriptors that there are, and keep them."""
    note(ctx, START)
    while True:
        _leaked.append(os.open("/dev/null", os.O_RDONLY))


@app.task(name="effect_mess", backoff=_SOON)
def effect_mess(ctx: Context) -> None:
    """Leave a connection with all that a session can have, once its own transaction has committed."""
    note(ctx, START)
    with ctx.transaction() as connection:
        found = connection.execute(_SESSION).fetchone()
        if found != (0, 0, 0, "", False):
            raise ValueError(f"what another job has left: {found}")
        connection.execute(_INSERT, [ctx.job.id, ctx.job.execution])
        for statement in _MESS:
            connection.execute(statement.encode())
        note(ctx, END)
    note(ctx, COMMITTED)
    connection.autocommit = False
    connection.execute("select 'a transaction that nobody ends'")


_MESS = (
    "create temp table mess (id integer)",
    "listen mess",
    "set search_path = nowhere",
    "select pg_advisory_lock(77)",
    "prepare mess as select 1",
    "declare mess cursor with hold for select 1",
    "select set_config('pgworker.org_id', 'another', false)",
)
_SESSION = """
    select (select count(*) from pg_listening_channels()), (select count(*) from pg_prepared_statements),
           (select count(*) from pg_cursors), current_setting('pgworker.org_id'),
           current_setting('search_path') = 'nowhere' or to_regclass('pg_temp.mess') is not null
           or exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())
"""
