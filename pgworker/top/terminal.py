"""The terminal while `pgworker top` has it: another screen, no cursor, keys one by one, signals as bytes of a pipe.

Whatever ends the context, the terminal is as it was before.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGWINCH)
_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Heard:
    """What has happened since the last time: keys that were pressed, signals that came."""

    keys: str
    signals: frozenset[int]


class Terminal:
    """Draws, and waits for keys, signals and news. On the main thread, as signals are."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._has_keys = sys.stdin is not None and sys.stdin.isatty()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, asked of the terminal itself: COLUMNS and LINES don't follow a resize."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            columns, lines = 0, 0
        return columns or 80, lines or 24

    def draw(self, render: Callable[[int, int], RenderableType]) -> None:
        """Show what `render` makes of the size."""
        self._console.size = self.size
        self._live.update(render(*self.size), refresh=True)

    def wait(self, seconds: float) -> Heard:
        """Until a key, a signal or news, for at most so many seconds."""
        keyboard = [sys.stdin.fileno()] if self._has_keys else []
        ready = select.select([self._read_end, *keyboard], [], [], seconds)[0]
        keys = self._read_keys() if set(keyboard) & set(ready) else ""
        signals: frozenset[int] = frozenset()
        with suppress(BlockingIOError):
            signals = frozenset(os.read(self._read_end, _BYTES)) - {0}
        return Heard(keys, signals)

    def _read_keys(self) -> str:
        try:
            pressed = os.read(sys.stdin.fileno(), _BYTES)
        except OSError:  # the terminal has gone, and SIGHUP says so
            pressed = b""
        self._has_keys = bool(pressed)
        return pressed.decode(errors="replace")

    def suspend(self) -> None:
        """As Ctrl-Z does elsewhere: give the terminal back and stop, until somebody says go on."""
        with self._given_back():
            os.kill(os.getpid(), signal.SIGSTOP)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the terminal."""
        before = {number: signal.getsignal(number) for number in _NUMBERS}
        wakeup = signal.set_wakeup_fd(self.write_end, warn_on_full_buffer=False)
        try:
            for number in _NUMBERS:
                if before[number] is not signal.SIG_IGN:  # under nohup it stays ignored
                    signal.signal(number, lambda *_: None)  # its number comes through the pipe
            with self._in_raw_mode(), self._live:
                yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _in_raw_mode(self) -> Iterator[None]:
        """Keys come at once and are not shown; Ctrl-C and Ctrl-Z stay signals."""
        if not self._has_keys:
            yield
            return
        self._before = termios.tcgetattr(sys.stdin.fileno())
        self._take_keys()
        try:
            yield
        finally:
            self._give_keys_back()

    @contextmanager
    def _given_back(self) -> Iterator[None]:
        self._live.stop()
        if self._has_keys:
            self._give_keys_back()
        yield
        if self._has_keys:
            self._take_keys()
        self._live.start()

    def _take_keys(self) -> None:
        tty.setcbreak(sys.stdin.fileno(), termios.TCSADRAIN)

    def _give_keys_back(self) -> None:
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
