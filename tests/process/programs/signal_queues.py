"""Scenarios of SignalQueue, each in a process of its own: `python signal_queues.py SCENARIO`."""
# ruff: noqa: T201 - a scenario reports by printing

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections import Counter

from pgworker.linux.signals import SignalQueue

TERM, HUP, INT, USR1, USR2 = signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2


def readable(queue: SignalQueue, seconds: float = 0) -> bool:
    return bool(select.select([queue], [], [], seconds)[0])


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def names(queue: SignalQueue) -> list[str]:
    return [number.name for number in queue.drain()]


def order() -> None:
    """Signals of three kinds, one twice; and one that is somebody else's."""
    queue = SignalQueue()
    queue.install([TERM, HUP, USR2])
    signal.signal(USR1, lambda *_: None)
    print(readable(queue), names(queue))
    send(TERM, HUP, USR1, HUP, USR2)
    print(readable(queue), names(queue))
    print(readable(queue), names(queue))


def unblocking() -> None:
    """A signal that waited, blocked, for the queue."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [TERM])
    send(TERM)
    queue = SignalQueue()
    queue.install([TERM])
    print(names(queue))


def closing() -> None:
    """Two queues, one inside the other."""
    seen = []
    signal.signal(HUP, lambda *_: seen.append("before"))
    outer = SignalQueue()
    outer.install([TERM])
    inner = SignalQueue()
    inner.install([TERM, HUP])
    inner.install([HUP])
    send(TERM, HUP)
    print(names(inner), names(outer), seen)
    inner.close()
    send(TERM, HUP)
    print(names(outer), seen)
    outer.close()
    print(signal.getsignal(TERM) is signal.SIG_DFL, signal.set_wakeup_fd(-1))


def burst() -> None:
    """Count what somebody else sends, until TERM."""
    queue = SignalQueue()
    queue.install([TERM, HUP, INT, USR1, USR2])
    print("ready", flush=True)
    seen: Counter[str] = Counter()
    while "SIGTERM" not in seen:
        assert readable(queue, 30), "not woken"
        seen.update(names(queue))
    print(*sorted(seen))


def overflow() -> None:
    """More signals than a pipe holds, then two of other kinds; and once more without these."""
    queue = SignalQueue()
    queue.install([USR2, TERM, HUP])
    send(*[USR2] * 70_000, TERM, HUP)
    print(*sorted(set(names(queue))), names(queue))
    send(*[USR2] * 70_000)
    print(*set(names(queue)))
    send(USR2)
    print(names(queue))


def stuck() -> None:
    """The main thread is in C for good, without the GIL; another thread reads the queue."""
    queue = SignalQueue()
    queue.install([TERM])

    def read() -> None:
        assert readable(queue, 30), "not woken"
        print(names(queue), flush=True)
        os._exit(0)

    threading.Thread(target=read).start()
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)  # all zero is PTHREAD_MUTEX_INITIALIZER
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)  # a deadlock with itself, which no signal interrupts


if __name__ == "__main__":
    globals()[sys.argv[1]]()
