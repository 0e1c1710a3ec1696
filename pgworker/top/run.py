"""`pgworker top`: the live screen, or one page of it."""

from __future__ import annotations

import signal
import sys
import time

from rich.console import Console, Group

from pgworker.model.durations import duration
from pgworker.top.frame import frame
from pgworker.top.reader import Latest, Reader, bell
from pgworker.top.terminal import Heard, Terminal
from pgworker.top.view import Source

_REDRAW_EVERY = 1.0  # seconds, for the age of old data
_LATE = 3.0  # seconds by which the next look may be late before the screen says how old its data is
_WIDTH_OF_A_PIPE = 160


def run_screen(source: Source, interval: float) -> int:
    """The live screen until `q` or Ctrl-C, which both are 0; 128 and the number after another signal.

    Raises PgworkerError if there is nothing to show at the beginning; later it tries again and says so.
    """
    first = source.look()
    terminal = Terminal()
    with Reader(source, first, interval, bell(terminal.write_end)) as reader, terminal.taken():
        return _Screen(terminal, reader, interval).run()


class _Screen:
    def __init__(self, terminal: Terminal, reader: Reader, interval: float) -> None:
        self._terminal = terminal
        self._reader = reader
        self._interval = interval
        self._held: Latest | None = None
        """What is shown while the screen is paused."""

    def run(self) -> int:
        while True:
            self._terminal.draw(self._render)
            heard = self._terminal.wait(_REDRAW_EVERY)
            if self._reader.bug is not None:
                raise self._reader.bug
            ended = self._obey(heard)
            if ended is not None:
                return ended

    def _obey(self, heard: Heard) -> int | None:
        """The exit code, if it is to end."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number in heard.signals:
                return 128 + number
        if signal.SIGINT in heard.signals:
            return 0
        if signal.SIGTSTP in heard.signals:
            self._terminal.suspend()
        for key in heard.keys.lower():
            if key == "q":
                return 0
            if key == "p":
                self._held = None if self._held is not None else self._reader.latest
        return None

    def _render(self, width: int, height: int) -> Group:
        latest = self._held or self._reader.latest
        notice = "" if self._held is not None else _notice(latest, self._interval)
        return frame(latest.view, width, height, notice=notice, is_paused=self._held is not None)


def _notice(latest: Latest, interval: float) -> str:
    age = time.monotonic() - latest.seen_at
    if latest.trouble:
        return f"these data are {duration(age)} old: {latest.trouble} It is tried again."
    if age > interval + _LATE:
        return f"these data are {duration(age)} old: the database has not answered since"
    return ""


def print_page(source: Source) -> None:
    """All of it once, to stdout: as wide as the terminal, or 160 columns where there is none."""
    view = source.look()
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    width = console.width if sys.stdout.isatty() else _WIDTH_OF_A_PIPE
    console.width = width
    console.print(frame(view, width, None), soft_wrap=True)
