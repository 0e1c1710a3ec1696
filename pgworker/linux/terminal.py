"""The controlling terminal of this process: whether it has one, and whether that is gone. See tty(4), setsid(2)."""

from __future__ import annotations

import os


class ControllingTerminal:
    """That which this process has when this is made, if any: services and containers have none."""

    def __init__(self) -> None:
        self._was_there = _is_there()

    def is_gone(self) -> bool:
        """Whether somebody has closed it since, or its connection broke: the kernel takes it from its whole session."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
