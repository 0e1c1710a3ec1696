"""The app of the containers that tests run."""

from __future__ import annotations

import os
import subprocess
import tempfile

from pgworker import App, Context

app = App()


@app.task
def who() -> list[int]:
    """User, group, and the process that the worker's parent is."""
    return [os.getuid(), os.getgid(), os.getppid()]


@app.task
def leave_an_orphan() -> int:
    """A process that outlives its parent, in a session of its own; its pid."""
    line = "setsid sleep 600 >/dev/null 2>&1 & echo $!"
    return int(subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout)


@app.task
def last(ctx: Context, until_killed: bool = False) -> str:
    """Runs on until it is asked to stop, or for ever; from the second execution on it is done at once."""
    if ctx.job.execution > 1:
        return "at last"
    while until_killed or not ctx.wait_cancelled(60):
        pass
    return "asked to stop"


@app.task
def finish_after_a_while(ctx: Context) -> str:
    """Says that it runs, and takes longer than a TERM takes to arrive."""
    ctx.progress(0.5)
    ctx.wait_cancelled(3.0)
    return "finished"


@app.task
def write_somewhere() -> list[str]:
    """The directories, of some that programs like to write to, in which a file could be made."""
    asked = ("/app", "/opt/venv", "/", "/var/tmp", "/tmp", "/run", "/dev/shm")
    return [directory for directory in asked if _is_writable(directory)]


def _is_writable(directory: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
