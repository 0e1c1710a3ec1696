"""Signals as something to select on: the wake-up descriptor of Python's C handler (signal.set_wakeup_fd)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Container, Iterable, Iterator
from types import FrameType
from typing import Any


class SignalQueue:
    """The signals that arrived, in order, behind a descriptor that becomes readable with the first.

    C code writes each into a pipe as it arrives, whatever Python does meanwhile. There is one wake-up descriptor per
    process: a second queue takes over until it is closed. `install` and `close` belong to the main thread.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._capacity = fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ)
        self._noted: set[int] = set()
        self._previous: dict[int, Any] = {}
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def install(self, signals: Iterable[signal.Signals]) -> None:
        """Queue these from now on, and unblock them."""
        numbers = list(signals)
        for number in numbers:
            previous = signal.signal(number, self._note)
            self._previous.setdefault(number, previous)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def fileno(self) -> int:
        """Readable when a signal is queued; so a selector takes the queue itself."""
        return self._reader

    def drain(self) -> list[signal.Signals]:
        """What arrived since the last call, in order, as often as it was delivered. Never blocks.

        After more signals than the pipe holds (65,536 by default) further ones count once each.
        """
        arrived = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader, self._capacity):
                arrived += chunk
        if len(arrived) >= self._capacity:
            arrived += bytes(sorted(self._noted.difference(arrived)))
        self._noted.clear()
        # The pipe also hears of signals that others in this process have handlers for.
        return [signal.Signals(number) for number in arrived if number in self._previous]

    def was_ignored(self, number: signal.Signals) -> bool:
        """Whether whoever started this process had it ignore this one, as nohup does with HUP."""
        return self._previous.get(number) == signal.SIG_IGN

    def close(self, *, ignored: Container[int] = ()) -> None:
        """Put the handlers and the wake-up descriptor back as they were; what is still queued is forgotten.

        Those that are `ignored` from then on are so without a gap.
        """
        for number, previous in self._previous.items():
            before = signal.SIG_DFL if previous is None else previous
            signal.signal(number, signal.SIG_IGN if number in ignored else before)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._reader)
        os.close(self._writer)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.add(number)  # all that a full pipe leaves of it


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """INT, TERM and HUP that come within take effect behind it. On another thread than the main one, which alone they
    interrupt, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _blocked(numbers):
        before = {number: signal.getsignal(number) for number in numbers}
        ours = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
        for number in ours:
            signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        with _blocked(numbers):
            for number in ours:
                signal.signal(number, before[number])
        for late in came:
            signal.raise_signal(late)


@contextlib.contextmanager
def _blocked(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
