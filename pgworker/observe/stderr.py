"""Standard error as a place for log lines that never stops who writes them.

A pipe whose reader has stopped reading would block the first process that finds it full, and with it the renewal of
leases and the kill of what is late. So there is a look before each write, and after a moment's patience the line is
dropped and counted. To make the descriptor non-blocking is no way: it is shared with whatever handlers print to it, and
with the shell.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import stat
import time
from array import array
from termios import FIONREAD
from typing import Final

_STDERR: Final = 2
_PATIENCE: Final = 0.5
"""Seconds for a reader that is slow; none more, once it has let them pass, until it reads again."""
_LOOK: Final = 0.01  # seconds between two looks whether a long line has room


class Stderr(logging.Handler):
    """Writes each record as one line, in one write. What can't be written is counted, and told of when it can again."""

    def __init__(self) -> None:
        super().__init__()
        mode = os.fstat(_STDERR).st_mode
        self._is_pipe = stat.S_ISFIFO(mode)
        self._may_block = self._is_pipe or stat.S_ISSOCK(mode) or os.isatty(_STDERR)
        self._poll = select.poll()
        self._poll.register(_STDERR, select.POLLOUT)
        self._is_stuck = False
        self._is_torn = False
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lines = [self.format(record)]
        if self._lost:
            lines.insert(0, self.format(self._loss()))
        if self._is_torn:
            lines.insert(0, "")
        data = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
        if self._has_room(len(data)) and self._write(data):
            self._lost = 0
        else:
            self._lost += 1

    def _write(self, data: bytes) -> bool:
        left = data
        try:
            while left:
                left = left[os.write(_STDERR, left) :]
        except OSError:  # EPIPE, ENOSPC, EAGAIN: no log is a reason to end
            self._is_torn = self._is_torn or len(left) < len(data)
            return False
        self._is_torn = False
        return True

    def _has_room(self, size: int) -> bool:
        """Whether the line can be written now, or within our patience."""
        if not self._may_block:
            return True
        ends = time.monotonic() + (0.0 if self._is_stuck else _PATIENCE)
        while not self._is_writable(size, max(0.0, ends - time.monotonic())):
            if time.monotonic() >= ends:
                self._is_stuck = True
                return False
            time.sleep(_LOOK)
        self._is_stuck = False
        return True

    def _is_writable(self, size: int, seconds: float) -> bool:
        """Ready means room for PIPE_BUF in a pipe; a longer line would wait inside write() for the rest."""
        if not self._poll.poll(seconds * 1000):
            return False
        if not self._is_pipe or size <= select.PIPE_BUF:
            return True
        waiting, room = array("i", [0]), fcntl.fcntl(_STDERR, fcntl.F_GETPIPE_SZ)
        fcntl.ioctl(_STDERR, FIONREAD, waiting)
        return 2 * waiting[0] + size + select.PIPE_BUF <= room or not waiting[0]  # pages of short lines are half full

    def _loss(self) -> logging.LogRecord:
        told = "%d lines were lost here: nobody read them, or no space was left for them"
        record = logging.LogRecord("pgworker.log", logging.WARNING, __file__, 0, told, (self._lost,), None)
        record.fields = {"event": "log_lines_lost", "lines": self._lost}
        return record


def is_journal(named: str | None) -> bool:
    """Whether standard error is the journal's stream; `named` is what systemd has put into JOURNAL_STREAM."""
    device, _, inode = (named or "").partition(":")
    try:
        status = os.fstat(_STDERR)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
