"""The app of pools whose server is broken: handlers that note when they start and end, by key."""

from __future__ import annotations

import time
from pathlib import Path

from pgworker import App, Backoff, Context
from tests.chaos.evidence import Ledger

WORKED = "worked"
"""The ledger, in the directory that each job names."""

app = App()
_SOON = Backoff(base=0.05, cap=0.2)
_LOOK = 0.02  # seconds between two looks at a gate


def note(ctx: Context, directory: str, event: str, key: str) -> None:
    """A line of its own, with the time by the monotonic clock of this machine."""
    ledger = Ledger(Path(directory, WORKED))
    ledger.note(event, key, ctx.job.execution, f"{time.monotonic():.6f}")
    ledger.close()


@app.task(name="plain", backoff=_SOON, max_attempts=3)
def plain(ctx: Context, directory: str, key: str, seconds: float = 0.0) -> None:
    """Take a moment."""
    note(ctx, directory, "start", key)
    time.sleep(seconds)
    note(ctx, directory, "end", key)


@app.task(name="effect", backoff=_SOON, max_attempts=3)
def effect(ctx: Context, directory: str, key: str, seconds: float = 0.0) -> None:
    """Take a moment, and write a row in the transaction of the job."""
    note(ctx, directory, "start", key)
    time.sleep(seconds)
    with ctx.transaction() as connection:
        connection.execute("insert into chaos.effect values (%s, %s)", [ctx.job.id, ctx.job.execution])
    note(ctx, directory, "end", key)


@app.task(name="hold", backoff=_SOON, max_attempts=1)
def hold(ctx: Context, directory: str, key: str) -> None:
    """Run until the gate `key` opens, or one is asked to stop."""
    note(ctx, directory, "start", key)
    while not Path(directory, key).exists():
        if ctx.cancelled:
            note(ctx, directory, "stop", key)
            ctx.raise_if_cancelled()
        time.sleep(_LOOK)
    note(ctx, directory, "end", key)
