"""Deaths of workers on their way to the monitor, which records them; told again until it says that it has."""

from __future__ import annotations

import time

from pgworker.linux.control import Death
from pgworker.master.children import MonitorChild

_REPORT_AGAIN = 2.0  # seconds after which the monitor is told once more of a death that it has not acknowledged


class Deaths:
    """Those that the monitor has not acknowledged."""

    def __init__(self, monitor: MonitorChild) -> None:
        self._monitor = monitor
        self._unrecorded: dict[str, Death] = {}
        self._report_at = 0.0

    def __len__(self) -> int:
        return len(self._unrecorded)

    def report(self, death: Death) -> None:
        self._unrecorded[death.worker_id] = death
        self._send(death)

    def report_all(self) -> None:
        """To a new monitor, which knows of none: before it looks for the leases of those who have ended, for without
        what the board shows of them it could only guess."""
        self._report_at = time.monotonic() + _REPORT_AGAIN
        for death in self._unrecorded.values():
            self._send(death)

    def report_due(self, now: float) -> None:
        """To a busy monitor again, should a message not have fitted."""
        if now >= self._report_at:
            self.report_all()

    def acknowledge(self, worker_id: str) -> None:
        self._unrecorded.pop(worker_id, None)

    def _send(self, death: Death) -> None:
        if self._monitor.channel is not None:
            self._monitor.channel.send_death(death)
