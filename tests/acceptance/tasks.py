"""The app of the pools under test here: one task for each way a job can end that a worker outlives."""

from __future__ import annotations

import time
from pathlib import Path

from pgworker import App, Backoff, Context, Discard, Snooze

app = App()
_SOON = Backoff(base=0.05, cap=0.05)

UNSTORABLE = {"an object": object(), "a surrogate": "\ud800", "NUL": "a\0b", "NaN": float("nan")}


@app.task(name="add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="answer")
def answer(kind: str) -> object:
    """Return what JSON or PostgreSQL can't hold."""
    return UNSTORABLE[kind]


@app.task(name="fail", max_attempts=2, backoff=_SOON)
def fail(reason: str) -> None:
    """Raise an error of these words, in which escapes count."""
    raise ValueError(reason.encode().decode("unicode_escape"))


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@app.task(name="fail_silently", max_attempts=1)
def fail_silently() -> None:
    raise Unspeakable


@app.task(name="give_up")
def give_up() -> None:
    raise Discard("not for us")


@app.task(name="come_back")
def come_back(ctx: Context) -> None:
    if ctx.job.execution == 1:
        raise Snooze(0.05)


@app.task(name="wait")
def wait(gate: str) -> None:
    """Run until the file `gate` is there."""
    while not Path(gate).exists():
        time.sleep(0.01)
