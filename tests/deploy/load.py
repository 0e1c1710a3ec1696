"""The app of the pools that are scraped: a task for each way in which an execution can end."""

from __future__ import annotations

import os
import signal
import time

from pgworker import App, Backoff, Context

app = App()


@app.task
def succeed(seconds: float = 0.0) -> None:
    time.sleep(seconds)


@app.task(backoff=Backoff(base=3600, cap=3600))
def fail() -> None:
    """Its jobs wait for an hour, as failed."""
    raise ValueError("as asked")


@app.task(max_attempts=1)
def give_up() -> None:
    """Its jobs are dead letters."""
    raise ValueError("as asked")


@app.task(max_attempts=1, timeout=0.2)
def time_out(ctx: Context) -> None:
    ctx.wait_cancelled(60)
    ctx.raise_if_cancelled()


@app.task(max_attempts=1)
def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
