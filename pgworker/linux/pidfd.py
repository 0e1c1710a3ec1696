"""Children by pidfd: signals can't hit a stranger with a reused pid, and deaths are seen before they are reaped.

Peek, act, reap: as long as a dead child is not reaped, its pid and its process group can't belong to anybody else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: by `code`, or by `signal`, then perhaps with a core dump. The other one is None."""

    pid: int
    code: int | None
    signal: int | None
    core: bool

    def describe(self) -> str:
        """In words: `exit code 3`, `killed by SIGKILL`, `killed by SIGSEGV (core dumped)`."""
        if self.signal is None:
            return f"exit code {self.code}"
        return f"killed by {_signal_name(self.signal)}" + (" (core dumped)" if self.core else "")


def open_pidfd(pid: int) -> int:
    """A descriptor for this very process, readable once it has ended. ProcessLookupError if it is gone."""
    return os.pidfd_open(pid)


def is_gone(pid: int) -> bool:
    """Whether it is certain that nobody in our PID namespace runs under this pid: none, or one that has ended to its
    last thread and waits to be reaped. Whoever it belongs to, whether /proc shows it or not; a stopped one is there.

    False also when that can't be found out, and for a pid that a stranger has by now.
    """
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return True
    except OSError:  # pidfd_open(2): the pid of a thread, no descriptor left, no such call in this sandbox
        return False
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


def send(pidfd: int, number: int) -> bool:
    """Send a signal to the process behind `pidfd`; False if it has been reaped."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def next_exit() -> Exit | None:
    """A dead child that waits to be reaped, or None; the same one again until `reap`. Never blocks.

    Any child: as PID 1 or a subreaper a process also gets orphans that it never started.
    """
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None
    if found is None:
        return None
    exited = found.si_code == os.CLD_EXITED
    return Exit(
        pid=found.si_pid,
        code=found.si_status if exited else None,
        signal=None if exited else found.si_status,
        core=found.si_code == os.CLD_DUMPED,
    )


def reap(pid: int) -> None:
    """Free the pid of a child that `next_exit` has shown; nothing if it runs or is no child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def kill_group(pgid: int, number: int) -> None:
    """Send a signal to a child and every process of its group; nothing if none is left, or none that we may signal.

    ValueError for our own group, and for 1 and below, which mean other things to kill(2).
    """
    if pgid <= 1 or pgid == os.getpgrp():
        raise ValueError(f"process group {pgid} is not a child's")
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pgid, number)  # should it have moved to another group


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
