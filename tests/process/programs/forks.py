"""Scenarios of fork_child, each run in a process of its own: `python forks.py SCENARIO [ARGUMENT]`."""
# ruff: noqa: T201 - a scenario reports by printing

from __future__ import annotations

import _thread
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pgworker.linux.fork import fork_child
from pgworker.linux.pidfd import open_pidfd
from pgworker.linux.signals import SignalQueue

PR_GET_PDEATHSIG = 2
QUEUED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR2, signal.SIGCHLD)


def fork(run: Callable[[], int], *, keep: tuple[int, ...] = (), blocked: tuple[signal.Signals, ...] = ()) -> int:
    return fork_child(run, keep_fds=keep, death_signal=signal.SIGKILL, blocked=blocked)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def signal_mask(name: str) -> list[str]:
    """The kernel's own view of our signals, out of /proc/self/status."""
    status = Path("/proc/self/status").read_text().splitlines()
    bits = next(int(line.split()[1], 16) for line in status if line.startswith(name + ":"))
    # Signals' members only: 32 and 33 are the C library's own, and its posix_spawn leaves them ignored.
    return [number.name for number in signal.Signals if bits >> (number - 1) & 1]


def death_signal() -> int:
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


def state() -> None:
    """The child reports what it inherited from a parent that has everything installed and open."""
    queue = SignalQueue()
    queue.install(QUEUED)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    reader, writer = os.pipe()

    def run() -> int:
        report = {
            "fds": [fd for fd in range(256) if fd != writer and is_open(fd)],
            "kept": is_open(writer),
            "leads its group": os.getpgrp() == os.getpid(),
            "wakeup fd": signal.set_wakeup_fd(-1),
            "caught": signal_mask("SigCgt"),
            "ignored": signal_mask("SigIgn"),
            "blocked": signal_mask("SigBlk"),
            "death signal": death_signal(),
        }
        os.write(writer, json.dumps(report).encode())
        return 0

    with ExitStack() as inherited:
        inherited.enter_context(selectors.DefaultSelector()).register(queue, selectors.EVENT_READ)
        inherited.enter_context(Path("/dev/null").open())
        for end in socket.socketpair():
            inherited.enter_context(end)
        assert exit_code(fork(run, keep=(writer,), blocked=(signal.SIGTERM,))) == 0
    print(os.read(reader, 65536).decode())


def parent_unharmed() -> None:
    """What the fork leaves behind in the parent, seen while the child hasn't done a thing yet."""
    reader, writer = os.pipe()
    os.register_at_fork(after_in_child=lambda: os.read(reader, 1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    pid = fork(lambda: 0)
    print(json.dumps({"child leads its group": os.getpgid(pid) == pid, "blocked": signal_mask("SigBlk")}))
    os.write(writer, b".")
    assert exit_code(pid) == 0


def garbage() -> None:
    """The parent leaves a dead cycle that closes descriptor 3 when collected, the child opens a 3 of its own."""

    class Descriptor:
        def __init__(self) -> None:
            self.fd = os.open("/dev/null", os.O_RDONLY)
            self.cycle = self

        def __del__(self) -> None:
            os.close(self.fd)

    def run() -> int:
        own = os.open("/dev/null", os.O_RDONLY)
        gc.collect()
        print(f"{own} is {'open' if is_open(own) else 'closed'}")
        return 0

    gc.disable()
    Descriptor()
    assert exit_code(fork(run)) == 0


def killed_parent(death: str) -> None:
    """A child that tells what it sees of its parent's death; the test kills the parent after `ready`."""
    lifeline, held = os.pipe()
    never, open_for_ever = os.pipe()

    def run() -> int:
        queue = SignalQueue()
        queue.install([signal.SIGUSR2])
        with selectors.DefaultSelector() as selector:
            end = {"SIGKILL": never, "SIGUSR2": queue.fileno(), "none": lifeline}[death]
            selector.register(end, selectors.EVENT_READ)
            print("ready", flush=True)
            assert selector.select(30), "nothing told of the parent's death"
        print("outlived it", *[caught.name for caught in queue.drain()], flush=True)
        return 0

    number = getattr(signal, death, None)
    fork_child(run, keep_fds=[lifeline, never, open_for_ever], death_signal=number, blocked=[signal.SIGUSR2])
    signal.pause()
    os.close(held)  # not reached: it closes with this process


def parent_dies_first(death: str) -> None:
    """The parent is dead before the child can ask for a death signal."""
    parent = os.getpid()
    waiting = threading.Event()

    def wait_until_orphaned() -> None:
        while os.getppid() == parent:
            waiting.wait(0.001)

    def run() -> int:
        queue = SignalQueue()
        queue.install([signal.SIGUSR2])
        print("ran", *[caught.name for caught in queue.drain()])
        return 0

    os.register_at_fork(
        after_in_parent=lambda: os.kill(parent, signal.SIGKILL),
        after_in_child=wait_until_orphaned,
    )
    fork_child(run, keep_fds=[], death_signal=getattr(signal, death), blocked=[signal.SIGUSR2])


def signal_itself(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def signals() -> None:
    """TERM reaches the parent inside fork(), ALRM and INT reach the child before the recipe has done anything."""
    parent = os.getpid()
    queue = SignalQueue()
    queue.install(QUEUED)
    os.register_at_fork(
        before=lambda: os.kill(parent, signal.SIGTERM),
        after_in_child=lambda: signal_itself(signal.SIGALRM, signal.SIGINT),
    )

    def run() -> int:
        own = SignalQueue()
        own.install([signal.SIGTERM, signal.SIGALRM])
        print("child", *[caught.name for caught in own.drain()])
        print("parent's queue in the child", list(queue._noted))
        return 0

    pid = fork(run, blocked=(signal.SIGTERM, signal.SIGALRM))
    caught = queue.drain()
    assert exit_code(pid) == 0
    print("parent", *[number.name for number in caught if number != signal.SIGCHLD])


def threads() -> None:
    """A fork with a thread of each kind alive, and one with a thread about to end."""
    release = threading.Event()
    lock = _thread.allocate_lock()
    lock.acquire()
    named = threading.Thread(target=release.wait, name="scraper")
    named.start()
    _thread.start_new_thread(lock.acquire, ())
    try:
        fork(lambda: 0)
    except RuntimeError as refused:
        print(refused)
    release.set()
    named.join()
    lock.release()
    threading.Timer(0.02, int).start()
    print("then", exit_code(fork(lambda: 0)))


def endings() -> None:
    """How a child ends that raises, exits or returns something odd."""

    def fails() -> int:
        raise ValueError("boom")

    def exits() -> int:
        sys.exit(0)

    def returns_nothing() -> int:
        return None  # type: ignore[return-value]

    print([exit_code(fork(run)) for run in (lambda: 0, lambda: 71, fails, exits, returns_nothing)])


def leaks() -> None:
    """100 children with their pidfds."""

    def fds() -> list[int]:
        return [fd for fd in range(256) if is_open(fd)]

    before = fds()
    codes = set()
    for _ in range(100):
        pidfd = open_pidfd(pid := fork(lambda: 0 if len(fds()) == 3 else 1))
        codes.add(exit_code(pid))
        os.close(pidfd)
    print(json.dumps({"exit codes": list(codes), "leaked": len(fds()) - len(before)}))


def buffered() -> None:
    """Text that the parent has written and not flushed when it forks."""
    sys.stdout.write("once ")

    def run() -> int:
        print("child")
        return 0

    exit_code(fork(run))
    print("parent")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
