"""Scenarios of stack dumps, each in a process of its own: `python dumps.py SCENARIO`."""
# ruff: noqa: T201 - a scenario reports by printing

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

from pgworker.linux import pidfd, process, stacks
from pgworker.linux.fork import fork_child


class Patient:
    """A child that dumps into a stack file while it does `work`; `work` is told how to say that it has begun."""

    def __init__(self, work: Callable[[Callable[[], object]], object]) -> None:
        self.stacks = stacks.StackFile()
        begun, writer = os.pipe()

        def run() -> int:
            stacks.install(self.stacks.fileno())
            work(lambda: os.write(writer, b"."))
            return 0

        keep = (writer, self.stacks.fileno())
        self.pid = fork_child(run, keep_fds=keep, death_signal=signal.SIGKILL, blocked=[stacks.ASK])
        self.pidfd = pidfd.open_pidfd(self.pid)
        os.read(begun, 1)

    def dump(self, number: int, until: str, seconds: float = 30) -> str:
        """What the stack file has once `until` is in it, or after `seconds`."""
        pidfd.send(self.pidfd, number)
        deadline = time.monotonic() + seconds
        while until not in (text := self.stacks.read()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return text

    def end(self) -> str:
        """How it ended, by SIGKILL if it still ran."""
        pidfd.send(self.pidfd, signal.SIGKILL)
        select.select([self.pidfd], [], [])
        found = pidfd.next_exit()
        assert found is not None
        pidfd.reap(found.pid)
        return found.describe()


def hold_the_gil(begin: Callable[[], object]) -> None:
    libc = ctypes.PyDLL(None)  # unlike CDLL it keeps the GIL during a call
    mutex = ctypes.create_string_buffer(64)  # all zero is PTHREAD_MUTEX_INITIALIZER
    libc.pthread_mutex_lock(mutex)
    begin()
    libc.pthread_mutex_lock(mutex)  # a deadlock with itself, which no signal interrupts


def spin(begin: Callable[[], object]) -> None:
    threading.Thread(target=wait, daemon=True).start()
    begin()
    while True:
        sorted(range(100), key=lambda number: -number)


def wait() -> None:
    threading.Event().wait()


def crash(begin: Callable[[], object]) -> None:
    begin()
    ctypes.string_at(0)


def held() -> None:
    """A process whose main thread keeps the GIL in C."""
    patient = Patient(hold_the_gil)
    while process.state(patient.pid) != "S":  # the only thing left for it to sleep in is the lock
        time.sleep(0.001)
    print("asked:", repr(patient.dump(stacks.ASK, "in hold_the_gil", seconds=0.5)))
    print(patient.dump(stacks.FORCE, "<module>"))
    print(patient.end())


def busy() -> None:
    """A process that runs Python code in one thread and waits in another, asked 300 times."""
    patient = Patient(spin)
    for _ in range(300):
        patient.stacks.clear()
        text = patient.dump(stacks.ASK, "<module>")
    print(text)
    print(patient.end())


def fatal() -> None:
    """A process that crashes."""
    patient = Patient(crash)
    select.select([patient.pidfd], [], [])
    print(patient.stacks.read())
    print(patient.end())


def early() -> None:
    """A process that is asked before it is able to answer."""
    go, writer = os.pipe()
    os.register_at_fork(after_in_child=lambda: os.read(go, 1))
    file = stacks.StackFile()

    def run() -> int:
        stacks.install(file.fileno())
        return 3

    pid = fork_child(run, keep_fds=[file.fileno()], death_signal=signal.SIGKILL, blocked=[stacks.ASK])
    os.kill(pid, stacks.ASK)
    os.write(writer, b".")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(file.read())


if __name__ == "__main__":
    globals()[sys.argv[1]]()
