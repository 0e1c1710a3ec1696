"""Looks at the database again and again, on a thread of its own, so that a slow one never holds up a key."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pgworker.errors import PgworkerError
from pgworker.top.view import Source, View


@dataclass(frozen=True, slots=True)
class Latest:
    """The last view that was had, when by the monotonic clock, and why there is no later one, if so."""

    view: View
    seen_at: float
    trouble: str = ""


class Reader:
    """The thread. `news` is called in it whenever `latest` is another one."""

    def __init__(self, source: Source, first: View, interval: float, news: Callable[[], None]) -> None:
        self._source = source
        self._interval = interval
        self._news = news
        self._is_over = threading.Event()
        self.latest = Latest(first, time.monotonic())
        self.bug: Exception | None = None
        """What ended the thread, if it was none of the database's errors."""
        self._thread = threading.Thread(target=self._read, name="top", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A look that hangs is left alone: the process is about to end."""
        self._is_over.set()
        self._thread.join(0.2)

    def _read(self) -> None:
        try:
            while not self._is_over.wait(self._interval):
                self.latest = self._look()
                self._news()
            self._source.close()
        except Exception as error:  # noqa: BLE001  the thread that draws raises it again
            self.bug = error
            self._news()

    def _look(self) -> Latest:
        try:
            return Latest(self._source.look(), time.monotonic())
        except PgworkerError as error:
            return Latest(self.latest.view, self.latest.seen_at, str(error))


def bell(descriptor: int) -> Callable[[], None]:
    """What wakes whoever selects on the other end of this pipe; a full one is awake already."""

    def ring() -> None:
        try:
            os.write(descriptor, b"\0")
        except (BlockingIOError, BrokenPipeError):
            return

    return ring
