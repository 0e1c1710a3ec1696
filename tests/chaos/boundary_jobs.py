"""The app of the pools that die at every boundary: a little of everything that a job may do.

Each execution says in a file of its own, `ledger`, that it starts; `chaos.effect` has what it did in its transaction.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

from pgworker import App, Backoff, Context, DeadLetter, Discard
from tests.chaos.evidence import append

app = App()
_SOON = Backoff(base=0.05, cap=0.2)
_EFFECT = "insert into chaos.effect values (%s, %s)"


def start(ctx: Context, directory: str) -> None:
    """Say that this execution starts."""
    append(Path(directory, "ledger"), ctx.job.id, ctx.job.execution, os.getpid())


@app.task(name="quick", backoff=_SOON)
def quick(ctx: Context, directory: str, seconds: float = 0.0) -> int:
    start(ctx, directory)
    time.sleep(seconds)
    return os.getpid()


@app.task(name="quick_async", backoff=_SOON)
async def quick_async(ctx: Context, directory: str, seconds: float = 0.0) -> None:
    start(ctx, directory)
    await asyncio.sleep(seconds)


@app.task(name="effect", backoff=_SOON)
def effect(ctx: Context, directory: str, goes_wrong: bool = False) -> None:
    """Write a row in the job's own transaction; the first time roll it back, if asked."""
    start(ctx, directory)
    with ctx.transaction() as connection:
        connection.execute(_EFFECT, [ctx.job.id, ctx.job.execution])
        if goes_wrong and ctx.job.execution == 1:
            raise ValueError("as asked")


@app.task(name="effect_async", backoff=_SOON)
async def effect_async(ctx: Context, directory: str, goes_wrong: bool = False) -> None:
    start(ctx, directory)
    async with ctx.transaction_async() as connection:
        await connection.execute(_EFFECT, [ctx.job.id, ctx.job.execution])
        if goes_wrong and ctx.job.execution == 1:
            raise ValueError("as asked")


@app.task(name="flaky", backoff=_SOON)
def flaky(ctx: Context, directory: str) -> None:
    start(ctx, directory)
    if ctx.job.failures == 0:
        raise ValueError("as asked")


@app.task(name="tell", backoff=_SOON)
def tell(ctx: Context, directory: str, seconds: float = 0.0) -> None:
    """Say how far it is, fail, and begin from there."""
    start(ctx, directory)
    ctx.progress(0.5, "half", checkpoint={"execution": ctx.job.execution})
    time.sleep(seconds)
    if ctx.checkpoint is None:
        raise ValueError("as asked")


@app.task(name="hopeless")
def hopeless(ctx: Context, directory: str) -> None:
    start(ctx, directory)
    raise Discard("as asked")


@hopeless.on_dead_letter
def mourn(ctx: Context, dead: DeadLetter) -> str:
    return dead.reason


@app.task(name="poison", max_attempts=1)
def poison(ctx: Context, directory: str) -> None:
    start(ctx, directory)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="cooperate", backoff=_SOON)
def cooperate(ctx: Context, directory: str) -> None:
    """Run until cancelled; should nobody do so, not for long."""
    start(ctx, directory)
    ctx.wait_cancelled(3)
    ctx.raise_if_cancelled()


@app.task(name="hold_the_gil", backoff=_SOON)
def hold_the_gil(ctx: Context, directory: str, seconds: float) -> None:
    """Sleep in C without letting another thread of this process run, but the first time only."""
    start(ctx, directory)
    if ctx.job.execution == 1:
        ctypes.PyDLL(None).usleep(round(seconds * 1e6))


@app.task(name="look_for_strangers")
def look_for_strangers(targets: list[str]) -> dict[str, list[str]]:
    """Which of these functions have code of the tests in this process, and which modules of failpoints it has."""
    found = [resolve_name(target) for target in targets]
    files = [getattr(getattr(function, "__code__", None), "co_filename", "") for function in found]
    return {
        "patched": [target for target, file in zip(targets, files, strict=True) if "/tests/" in file],
        "modules": [name for name in sys.modules if name.endswith(".failpoints")],
    }
