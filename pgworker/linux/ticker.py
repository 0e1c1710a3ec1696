"""A tick by a timer, not by a thread, for what moves on a terminal while the main thread waits or forks."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY = 0.25
"""Seconds. psycopg looks for signals whenever nothing has interrupted its wait for 0.1 s: ticks as often as that would
keep everybody's handlers, Ctrl-C's too, from running until the statement has ended."""


@contextmanager
def ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick` four times a second, wherever the main thread is between two bytecodes. Children don't inherit it."""
    before = signal.signal(signal.SIGALRM, lambda *_: tick())
    signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
