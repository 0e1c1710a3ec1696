"""The app of the pools that are tried: handlers of every kind, each of which says in a ledger that it runs.

Names of tasks that write an effect in the transaction of their job begin with `effect`: the checker goes by that.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from psycopg import Rollback

from pgworker import App, Backoff, Context, DeadLetter, Snooze
from tests.chaos.witness import VARIABLE, Witness

app = App()
witness = Witness()
if VARIABLE in os.environ:  # in a pool that is tried; who enqueues imports this too
    witness.watch_starts()
    witness.watch_settles()

BROKEN = "app-is-broken"
"""While there is a file of this name beside the ledgers, the app can't be imported."""

if Path(os.environ.get(VARIABLE, "/nonexistent"), BROKEN).exists():
    raise ImportError("broken, as asked")

SOON = Backoff(base=0.05, cap=0.3)
LONG = 120.0
"""Seconds, as a timeout that is not meant to be reached."""

_EFFECT = "insert into chaos.effect (job_id, execution, org_id) values (%s, %s, %s)"
_ORG = "select current_setting('pgworker.org_id', true)"


@app.task(name="plain", backoff=SOON, timeout=LONG)
def plain(ctx: Context, key: int, ms: float = 0.0) -> None:
    """Take a moment."""
    witness.started(ctx)
    time.sleep(ms / 1000)


@app.task(name="plain_async", backoff=SOON, timeout=LONG)
async def plain_async(ctx: Context, key: int, ms: float = 0.0) -> None:
    """Take a moment on the loop."""
    witness.started(ctx)
    await asyncio.sleep(ms / 1000)


@app.task(name="effect", backoff=SOON, timeout=LONG)
def effect(ctx: Context, key: int, ms: float = 0.0) -> None:
    """Write a row in the transaction that is this job's success."""
    witness.started(ctx)
    with ctx.transaction() as connection:
        (org,) = connection.execute(_ORG).fetchone() or ("",)
        connection.execute(_EFFECT, [ctx.job.id, ctx.job.execution, org])
        time.sleep(ms / 1000)
    witness.acknowledged(ctx)


@app.task(name="effect_async", backoff=SOON, timeout=LONG)
async def effect_async(ctx: Context, key: int, ms: float = 0.0) -> None:
    """The same on the loop."""
    witness.started(ctx)
    async with ctx.transaction_async() as connection:
        (org,) = await (await connection.execute(_ORG)).fetchone() or ("",)
        await connection.execute(_EFFECT, [ctx.job.id, ctx.job.execution, org])
        await asyncio.sleep(ms / 1000)
    witness.acknowledged(ctx)


@app.task(name="effect_parent", backoff=SOON, timeout=LONG)
def effect_parent(ctx: Context, key: int) -> None:
    """Enqueue another job in this one's transaction: it is there if and only if this execution succeeded."""
    witness.started(ctx)
    with ctx.transaction() as connection:
        (org,) = connection.execute(_ORG).fetchone() or ("",)
        connection.execute(_EFFECT, [ctx.job.id, ctx.job.execution, org])
        child.using(connection).enqueue(str(ctx.job.id), ctx.job.execution)
    witness.acknowledged(ctx)


@app.task(name="child", backoff=SOON, timeout=LONG)
def child(ctx: Context, parent: str, execution: int) -> None:
    """Enqueued by `effect_parent`."""
    witness.started(ctx)


@app.task(name="fail", backoff=SOON, timeout=LONG, max_attempts=3)
def fail(ctx: Context, key: int, times: int) -> None:
    """Fail so many times: three end in a dead letter, whose hook is a job too."""
    witness.started(ctx)
    if ctx.job.failures < times:
        raise ConnectionError(f"failure {ctx.job.failures + 1} of {times}")


@fail.on_dead_letter
def bury(ctx: Context, dead: DeadLetter) -> None:
    """Know of a dead letter."""
    witness.started(ctx)


@app.task(name="snooze", backoff=SOON, timeout=LONG)
def snooze(ctx: Context, key: int) -> None:
    """Come back a moment later, once."""
    witness.started(ctx)
    if ctx.job.execution == 1:
        raise Snooze(0.2)


@app.task(name="say", backoff=SOON, timeout=LONG)
def say(ctx: Context, key: int) -> None:
    """Go on where the last execution has stopped, and fail once in between."""
    witness.started(ctx)
    begun = ctx.checkpoint["at"] if ctx.checkpoint else 0
    for at in range(begun, 5):
        ctx.progress(at / 5, f"step {at}", checkpoint={"at": at})
        if at == 2 and ctx.job.failures == 0:
            raise ConnectionError("as planned")


@app.task(name="obey", backoff=SOON, timeout=LONG)
def obey(ctx: Context, key: int, seconds: float = 2.0) -> None:
    """Run for a while unless cancelled."""
    witness.started(ctx)
    ctx.wait_cancelled(seconds)
    ctx.raise_if_cancelled()


@app.task(name="hang", backoff=SOON, timeout=0.5, max_attempts=1)
def hang(ctx: Context, key: int) -> None:
    """Never end, and listen to nobody: to be killed."""
    witness.started(ctx)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        time.sleep(3600)


@app.task(name="crash", backoff=SOON, timeout=LONG, max_attempts=2)
def crash(ctx: Context, key: int, how: str) -> None:
    """End the process in a way that it can't explain."""
    witness.started(ctx)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="hold_gil", backoff=SOON, timeout=LONG)
def hold_gil(ctx: Context, key: int, seconds: float) -> None:
    """Hold the GIL, as an extension in C does that never lets go of it."""
    witness.started(ctx)
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


@app.task(name="mess", backoff=SOON, timeout=LONG)
def mess(ctx: Context, key: int, kind: str) -> None:
    """Leave something behind that the next job must not find."""
    witness.started(ctx)
    if kind == "transaction":
        with ctx.transaction() as connection:
            connection.execute("create temporary table left_behind (n integer)")
            connection.execute("set search_path = pg_temp; set role none; listen somebody")
            raise Rollback
    elif kind == "settings":
        with ctx.transaction() as connection:
            connection.execute("set statement_timeout = '1ms'")
            raise Rollback
    elif kind == "files":
        _left.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(20))
    elif kind == "children":
        _left.append(subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL))
    else:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()


@app.task(name="odd", backoff=SOON, timeout=LONG, max_attempts=2)
def odd(ctx: Context, key: int, kind: str) -> Any:
    """End with something that can't be stored as it is."""
    witness.started(ctx)
    if kind in ("bad-str", "large-error", "cause-loop"):
        raise _error(kind)
    deep: list[Any] = []
    for _ in range(50_000):
        deep = [deep]
    results: dict[str, Any] = {
        "nul": "a\0b",
        "surrogate": "\ud800",
        "nan": float("nan"),
        "no-json": object(),
        "large": "x" * 1_000_000,
        "deep": deep,
    }
    return results[kind]


def _error(kind: str) -> Exception:
    if kind == "bad-str":
        return _Unspeakable()
    if kind == "large-error":
        return ValueError("x" * 1_000_000)
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not to be told")

    __repr__ = __str__


_left: list[Any] = []
