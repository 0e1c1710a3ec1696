"""The clerk's sleep, which whoever has something for it ends through a pipe."""

from __future__ import annotations

import os
import select

from pgworker.linux.wake import WOKEN_BY_RUNNER, wake

AWAKE, GROUPING, ASLEEP = range(3)
"""How deep it is: the runner ends it after every job while `ASLEEP`, after its last one while `GROUPING`, and never
while `AWAKE`."""


class Alarm:
    """Set by the clerk, rung by anybody who writes to the wake-up pipe; the runner does so by `wake`."""

    def __init__(self, wake_read: int, wake_write: int) -> None:
        self._wake_read = wake_read
        self._wake_write = wake_write
        self._depth = AWAKE
        self._poll = select.poll()
        self._poll.register(wake_read, select.POLLIN)

    def fileno(self) -> int:
        return self._wake_read

    def wake(self, runner_starves: bool) -> None:
        """Called by the runner after each job, and when it has nothing left: end the clerk's sleep, if it sleeps."""
        if self._depth == ASLEEP or (runner_starves and self._depth == GROUPING):
            self._depth = AWAKE
            wake(self._wake_write, WOKEN_BY_RUNNER)

    def set(self, depth: int) -> None:
        """From now on the runner rings it, until the end of `wait`. What happened before that it does not ring for."""
        self._depth = depth

    def wait(self, seconds: float) -> bool:
        """Sleep until it rings, so long at most. Whether somebody else than the runner has rung."""
        woken = os.read(self._wake_read, 4096) if self._poll.poll(max(0.0, seconds) * 1000) else b""
        self._depth = AWAKE
        return bool(woken.strip(WOKEN_BY_RUNNER))
