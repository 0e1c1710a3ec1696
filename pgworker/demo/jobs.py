"""The App of the demo: tasks that do real work, and tasks that go wrong in every way that a pool must survive."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from pathlib import Path

from pgworker.app.app import App
from pgworker.app.context import Context
from pgworker.demo.files import FileFacts, read_facts
from pgworker.errors import Discard
from pgworker.model.retry import Backoff

HANG_TIMEOUT = 1.0
"""Seconds after which a hung job is to be ended."""

_LONG = 60.0
"""Seconds: longer than the demo leaves a job waiting for what it does to it."""

app = App()


@app.task(name="demo.examine", timeout=60)
def examine(path: str) -> FileFacts:
    """Read one file; what was found is the job's result."""
    return read_facts(Path(path))


@app.task(name="demo.record", timeout=60)
def record(ctx: Context, path: str, note: str | None = None) -> None:
    """Read one file, and write what was found in the transaction that is this job's success.

    With a `note`, its first execution waits between the write and the commit, for its worker to be killed.
    """
    facts = read_facts(Path(path))
    with ctx.transaction() as connection:
        connection.execute(
            "insert into public.demo_files (job_id, path, sha256, size, lines, definitions)"
            " values (%s, %s, %s, %s, %s, %s)",
            [ctx.job.id, path, facts.sha256, facts.size, facts.lines, facts.definitions],
        )
        if note is not None and ctx.job.failures == 0:
            _leave(note)
            ctx.wait_cancelled(_LONG)


@app.task(name="demo.stumble", backoff=Backoff(base=0.2, cap=1.0))
def stumble(ctx: Context, number: int) -> str:
    """Fail the first time, succeed the second."""
    if ctx.job.failures == 0:
        raise ConnectionError(f"service {number} is not there yet")
    return f"service {number} answered"


@app.task(name="demo.hang", timeout=HANG_TIMEOUT, max_attempts=1)
def hang() -> None:
    """Never end, and listen to nobody."""
    while True:
        time.sleep(3600)


@app.task(name="demo.crash", max_attempts=2)
def crash() -> None:
    """Read memory that isn't there, as a broken extension in C does."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.string_at(0)


@app.task(name="demo.obey")
def obey(ctx: Context, note: str) -> None:
    """Go on until cancelled."""
    _leave(note)
    ctx.wait_cancelled(_LONG)
    ctx.raise_if_cancelled()


@app.task(name="demo.refuse")
def refuse() -> None:
    """Never to be run again."""
    raise Discard("the customer has closed the account")


def _leave(note: str) -> None:
    """Say in a file that this job runs now, and in which process."""
    Path(note).write_text(str(os.getpid()))
