"""The app of the pools that tests of middleware, orgs and dead-letter hooks start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from pgworker import App, Backoff, Context, DeadLetter, Job

app = App()
strict = App(require_org=True)
_SOON = Backoff(base=0.05, cap=0.2)


@app.middleware
def measure(job: Job, ctx: Context, call_next: Callable[[], Any]) -> Any:
    """Wrap what handlers return."""
    return {"task": job.task, "returned": call_next()}


@app.task(name="add", max_attempts=2, backoff=_SOON)
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="order")
def order(ctx: Context) -> None:
    """Enqueue a job in one's own transaction."""
    with ctx.transaction() as connection:
        add.using(connection).enqueue(1, 2)


@app.task(name="die", max_attempts=1)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@add.on_dead_letter
def tell(dead: DeadLetter) -> str:
    """Return what one was told."""
    return f"{dead.id} {dead.reason}"


@die.on_dead_letter
def add_instead(ctx: Context, dead: DeadLetter) -> None:
    """Enqueue another job."""
    with ctx.transaction() as connection:
        add.using(connection).enqueue(dead.execution, dead.failures)


@strict.task(name="charge")
def charge() -> str:
    return "charged"
