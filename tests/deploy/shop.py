"""The app of the units under test, installed as /opt/pgworker/app/shop.py. Gates are files that the tests create."""

from __future__ import annotations

import os
import pwd
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pgworker import App, Backoff, Context

VERSION = "first"
GATES = Path("/run/gates")

app = App()


def wait_for_gate(name: str) -> None:
    while not (GATES / name).exists():
        time.sleep(0.01)


@app.on_worker_start
def start(_state: SimpleNamespace) -> None:
    if os.environ.get("START_GATE"):
        wait_for_gate(os.environ["START_GATE"])


@app.task(backoff=Backoff(base=0.05, cap=0.2))
def hold(gate: str) -> str:
    """Run until the gate opens, deaf to everything else."""
    wait_for_gate(gate)
    return VERSION


@app.task
def overrun() -> None:
    """Run for longer than allowed, deaf."""
    wait_for_gate("never")


@app.task
def version() -> str:
    return VERSION


@app.task(backoff=Backoff(base=0.05, cap=0.2))
def grow(ctx: Context) -> int:
    """Take memory without end, but only once."""
    taken = []
    while ctx.job.execution == 1:
        taken.append(bytearray(1 << 20))
    return ctx.job.execution


@app.task
def surroundings() -> dict[str, Any]:
    """What a handler is, and may do."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "uid": os.getuid(),
        "capabilities": int(status["CapBnd"], 16),
        "no_new_privileges": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "umask": status["Umask"],
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": len(os.sched_getaffinity(0)),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "data": resource.getrlimit(resource.RLIMIT_DATA)[1],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "writable": [path for path in ("/", "/etc", "/opt/pgworker/app", "/run", "/var/lib") if _can_write(path)],
        "writes_state": _can_write(os.environ["STATE_DIRECTORY"]),
        "writes_tmp": _can_write("/tmp"),
    }


def _can_write(directory: str) -> bool:
    try:
        probe = Path(directory, "probe")
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
