"""The jobs that the bench runs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from pgworker.app.app import App
from pgworker.app.context import Context
from pgworker.model.job import JobRequest

_LONG = 1800.0  # seconds

PAYLOAD: dict[str, Any] = {"user_id": 1, "email": "someone@example.com", "template": "welcome", "note": "x" * 40}
"""The arguments of a typical job."""

app = App()


def do_nothing(user_id: int, email: str, template: str, note: str) -> None:
    """What is measured is everything around it."""


noop = app.task(name="noop")(do_nothing)


@app.task(name="sleep")
def sleep(seconds: float) -> None:
    """Hold a thread for so long."""
    time.sleep(seconds)


@app.task(name="sleep_async")
async def sleep_async(seconds: float) -> None:
    """Hold nothing but a slot for so long."""
    await asyncio.sleep(seconds)


@app.task(name="stamp")
def stamp(due_ns: int, filling: str) -> int:  # noqa: ARG001  it is there to be large
    """Nanoseconds since then, by the monotonic clock, which all processes of a host share. `filling`: its size."""
    return time.monotonic_ns() - due_ns


@app.task(name="rerun")
def rerun(ctx: Context, path: str, kills: bool) -> int:
    """The first time kill the own worker, or wait for somebody to do it; the second time, how many nanoseconds ago that
    was, which is in the file."""
    file = Path(path)
    if ctx.job.execution == 1:
        if kills:
            file.write_text(str(time.monotonic_ns()))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_LONG)
    return time.monotonic_ns() - int(file.read_text())


def typical(number: int) -> JobRequest:
    """A job of about 100 bytes that does nothing."""
    return noop.job(**PAYLOAD | {"user_id": number})
