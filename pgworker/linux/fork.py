"""Forking a child that inherits nothing by accident.

A fork copies one thread, and every lock in the state that the other threads left it in; so a process with a second
task never forks (POSIX fork, rationale; Python 3.12 and later warn of it).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

from pgworker.errors import EXIT_BUG

_PR_SET_PDEATHSIG = 1
_PARENTS_OWN = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
"""What means something to a master, and reaches its children too when a terminal or `systemctl kill` sends it."""

_THREAD_EXIT_GRACE = 0.5  # seconds: a thread that was joined is listed by the kernel for a moment longer


generation = 0
"""How many forks by os.fork lie between this process and the one that imported this module. By it a child is known from
its parent without os.getpid(), a system call: drain of no-op jobs was 5 % slower with one for each."""


def _count_generation() -> None:
    global generation
    generation += 1


os.register_at_fork(after_in_child=_count_generation)


def leave_if_forked(since: int, code: int = EXIT_BUG) -> None:
    """End a child that a handler has forked since `generation` was this, before it does what is its parent's to do:
    with the connection that both have, or with jobs that would run once more."""
    if generation != since:
        os._exit(code)


def fork_child(
    run: Callable[[], int],
    *,
    keep_fds: Collection[int],
    death_signal: int | None,
    blocked: Collection[signal.Signals],
) -> int:
    """Fork a process that does `run()` and exits with what it returns; gives its pid, and never returns in the child.

    The child leads its own process group, has no descriptor but 0, 1, 2 and `keep_fds`, default handlers in place of
    the parent's (what was ignored stays so), and ignores INT, QUIT, HUP, USR2, TTIN and TTOU, which are the parent's.
    `death_signal` reaches it when this process dies, also if that happens during the fork. The signals in `blocked`
    are held back until `run` has installed its handlers and unblocks them; every other one is open. It leaves by
    os._exit: an exception that escapes `run`, SystemExit included, is printed to stderr and ends it with 70.

    RuntimeError if this process has a second thread, OSError if it can't fork.
    """
    _refuse_threads()
    _flush_stdio()  # or the child would write the same buffered text once more
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(run, keep_fds, death_signal, blocked, parent)
        # Both sides do it: whichever comes first, the group exists when either goes on.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def set_death_signal(number: int | None) -> None:
    """Have the kernel send `number` to this process when its parent dies; None: nothing. See prctl(2).

    Not inherited by its children, and cleared by a change of user, group or capabilities: call it after those. The
    parent may be gone already; compare os.getppid() afterwards.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number or 0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG, {number}): {os.strerror(error)}")


def lasting_threads() -> list[str]:
    """The names of the threads beside this one, but for those that end within a moment."""
    deadline = time.monotonic() + _THREAD_EXIT_GRACE
    while (others := _other_threads()) and time.monotonic() <= deadline:
        time.sleep(0.001)
    return others


def _refuse_threads() -> None:
    if others := lasting_threads():
        raise RuntimeError(
            f"can't fork while other threads run ({', '.join(others)}): a child would inherit their locks held;"
            " start threads after the fork, in the child"
        )


def _other_threads() -> list[str]:
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    names = []
    for task in Path("/proc/self/task").iterdir():
        if task.name == str(os.getpid()):
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            comm = task.joinpath("comm").read_text(errors="replace").strip()
            names.append(known.get(int(task.name)) or f"{comm}, unknown to threading")
    return names


def _live(
    run: Callable[[], int],
    keep_fds: Collection[int],
    death_signal: int | None,
    blocked: Collection[signal.Signals],
    parent: int,
) -> NoReturn:
    code = EXIT_BUG
    try:
        _shed_inheritance(keep_fds)
        os.setpgid(0, 0)
        _tie_to_parent(death_signal, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        code = run() & 0xFF  # what the kernel keeps of it; also turns anything but an int into an error here
    except BaseException:  # noqa: BLE001 - nothing may unwind into the copy of the parent's stack
        traceback.print_exc()
    finally:
        try:
            _flush_stdio()
        finally:
            os._exit(code)


def _shed_inheritance(keep_fds: Collection[int]) -> None:
    signal.set_wakeup_fd(-1)
    # Collecting the parent's garbage here would close descriptors by number, and the numbers are soon ours.
    gc.freeze()
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in keep_fds:
            os.closerange(fd, fd + 1)  # ignores errors: the descriptor that listed the directory is closed by now
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in _PARENTS_OWN:
        signal.signal(number, signal.SIG_IGN)


def _tie_to_parent(death_signal: int | None, parent: int) -> None:
    if death_signal is None:
        return
    set_death_signal(death_signal)
    if os.getppid() != parent:  # it died before the kernel knew of our wish: send what it would have sent
        os.kill(os.getpid(), death_signal)


def _flush_stdio() -> None:
    for stream in (sys.stdout, sys.stderr):
        # AttributeError: None, when the process was started without it; ValueError: closed.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
