"""Scenarios of how children end and are seen to: `python exits.py SCENARIO`."""
# ruff: noqa: T201 - a scenario reports by printing

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable

from pgworker.linux import pidfd
from pgworker.linux.fork import fork_child

PR_SET_CHILD_SUBREAPER = 36


def fork(run: Callable[[], int], *keep_fds: int) -> int:
    return fork_child(run, keep_fds=keep_fds, death_signal=signal.SIGKILL, blocked=())


def kill_itself(number: int) -> int:
    os.kill(os.getpid(), number)
    return 0


def ended(pid: int) -> pidfd.Exit:
    """Wait for the end of a child by its pidfd, and peek."""
    fd = pidfd.open_pidfd(pid)
    assert select.select([fd], [], [], 30)[0]
    os.close(fd)
    found = pidfd.next_exit()
    assert found is not None
    assert found.pid == pid
    return found


def words() -> None:
    """Each way to end, in words."""
    ways: list[Callable[[], int]] = [
        lambda: 0,
        lambda: 3,
        lambda: kill_itself(signal.SIGKILL),
        lambda: kill_itself(signal.SIGRTMIN + 1),
        lambda: ctypes.string_at(0)[0],
    ]
    for way in ways:
        pid = fork(way)
        print(ended(pid).describe())
        pidfd.reap(pid)


def peeking() -> None:
    """A dead child is shown until it is reaped, and its pid stays its own."""
    print(pidfd.next_exit())
    pid = fork(lambda: 3)
    fd = pidfd.open_pidfd(pid)
    print(ended(pid) == ended(pid) == pidfd.Exit(pid, 3, None, core=False))
    pidfd.reap(pid)
    pidfd.reap(pid)
    pidfd.kill_group(pid, signal.SIGTERM)  # nobody is left in it
    print(pidfd.next_exit(), pidfd.send(fd, signal.SIGTERM))
    running = fork(lambda: len(select.select([], [], [], 30)))
    pidfd.reap(running)
    print(pidfd.next_exit(), pidfd.send(pidfd.open_pidfd(running), signal.SIGTERM), ended(running).describe())


def strangers() -> None:
    """An orphan comes to us, as to PID 1, and can be told from our own child."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    lifeline, held = os.pipe()

    def run() -> int:
        os.set_inheritable(lifeline, True)
        os.posix_spawn("/bin/sh", ["sh", "-c", f"read line <&{lifeline}; exit 5"], os.environ)
        return 0

    pid = fork(run, lifeline)
    print(ended(pid).describe())
    pidfd.reap(pid)
    os.close(held)  # the orphan reads the end of it, and exits
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    stranger = pidfd.next_exit()
    assert stranger is not None
    assert found is not None
    print(stranger.pid == found.si_pid != pid, stranger.describe())
    pidfd.reap(stranger.pid)
    print(pidfd.next_exit())


def is_refused(pgid: int) -> bool:
    try:
        pidfd.kill_group(pgid, 0)  # a signal that harms nobody, should it be sent
    except ValueError:
        return True
    return False


def groups() -> None:
    """A child dies, and what it has started is killed with its group before the child is reaped."""
    alive, held = os.pipe()

    def run() -> int:
        os.set_inheritable(held, True)
        os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
        return kill_itself(signal.SIGKILL)

    pid = fork(run, held)
    os.close(held)
    print(ended(pid).describe(), select.select([alive], [], [], 0)[0])
    pidfd.kill_group(pid, signal.SIGKILL)
    print(os.read(alive, 1))
    pidfd.reap(pid)
    print([is_refused(pgid) for pgid in (os.getpgrp(), 1, 0, -1)])


if __name__ == "__main__":
    globals()[sys.argv[1]]()
