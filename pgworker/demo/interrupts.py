"""Ctrl-C at any time: a signal is noted, and acted upon where nothing is half done."""

from __future__ import annotations

import signal
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Somebody asked us to end; `exit_code` is what a shell reports of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


class Interrupts:
    """Holds INT, TERM and HUP back within its context."""

    def __init__(self) -> None:
        self._number = 0
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}

    def check(self) -> None:
        """Raise Interrupted if one of them has come."""
        if self._number:
            raise Interrupted(self._number)

    def __enter__(self) -> Interrupts:
        for number in _NUMBERS:
            if self._before[number] is not signal.SIG_IGN:  # under nohup it stays ignored
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._number = self._number or number
