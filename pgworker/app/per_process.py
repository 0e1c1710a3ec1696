"""What each process makes for itself: connections and threads, which a forked child must not take over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """One T per process, made when it is first asked for. For all threads."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        # By process id. A parent's stay here untouched: even to forget them would close them.
        self._made: dict[int, T] = {}
        self._locks: dict[int, threading.Lock] = {}

    def get(self) -> T:
        """This process's own; whatever `make` raises."""
        pid = os.getpid()
        if pid in self._made:
            return self._made[pid]
        with self._lock():
            if pid not in self._made:
                self._made[pid] = self._make()
            return self._made[pid]

    def pop(self) -> T | None:
        """This process's own, which is then made anew when it is asked for again; None if there is none."""
        with self._lock():
            return self._made.pop(os.getpid(), None)

    def drop(self, made: T) -> bool:
        """As `pop`, if `made` is still this process's own; False: it isn't."""
        with self._lock():
            if self._made.get(os.getpid()) is not made:
                return False
            del self._made[os.getpid()]
            return True

    def _lock(self) -> threading.Lock:
        """One per process: another thread may have held the parent's while it forked."""
        return self._locks.setdefault(os.getpid(), threading.Lock())
