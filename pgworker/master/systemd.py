"""What the service manager is told: that the master moves, and what `systemctl status` shows of its pool."""

from __future__ import annotations

import os

from pgworker.linux.sd_notify import notify, watchdog_seconds

_STATUS_EVERY = 1.0  # seconds between two status lines, however often what they say changes
_PER_WATCHDOG = 4  # how often the watchdog hears of us in the time that it waits
_AFTERWARDS = 15.0  # seconds beyond a drain: the last ends are recorded, and the monitor ends


class Systemd:
    """Our side of a service of Type=notify; without systemd, nobody hears it. Times are of the monotonic clock."""

    def __init__(self) -> None:
        waits = watchdog_seconds(os.environ, os.getpid())
        self._alive_every = None if waits is None else waits / _PER_WATCHDOG
        self._next_alive = 0.0
        self._told = ""
        self._next_status = 0.0

    def ready(self) -> None:
        notify("READY=1")

    def stopping(self, seconds: float) -> None:
        """The pool drains for so long: TimeoutStopSec= of the unit need not be changed with the drain timeout."""
        notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((seconds + _AFTERWARDS) * 1e6)}")

    def alive(self, now: float) -> None:
        """Called in every round of the loop; a master that hangs does not."""
        if self._alive_every is not None and now >= self._next_alive:
            self._next_alive = now + self._alive_every
            notify("WATCHDOG=1")

    def status(self, now: float, status: str) -> None:
        """Called in every round of the loop."""
        if status != self._told and now >= self._next_status:
            self._told, self._next_status = status, now + _STATUS_EVERY
            notify(f"STATUS={status}")


def describe_pool(ready: int, wanted: int, running: int, remarks: dict[str, bool]) -> str:
    """Such as "7 of 8 workers ready, 3 jobs running, claiming is paused": the remarks are those that hold."""
    parts = [f"{ready} of {_count(wanted, 'worker')} ready", f"{_count(running, 'job')} running"]
    return ", ".join([*parts, *(remark for remark, holds in remarks.items() if holds)])


def describe_drain(workers: int, running: int, left: float) -> str:
    """Such as "draining: 2 workers left, 1 job running, for 20 s at most"; `left` in seconds."""
    rest = f"{_count(workers, 'worker')} left, {_count(running, 'job')} running"
    return f"draining: {rest}, for {max(left, 0):.0f} s at most"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
