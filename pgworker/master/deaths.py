"""Deaths of workers on their way to the monitor, which records them; told again until it says that it has."""

from __future__ import annotations

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

    def report_at_once(self) -> None:
        """There is a new monitor, which knows of none."""
        self._report_at = 0.0

    def report_due(self, now: float) -> None:
        """To a busy monitor again, should a message not have fitted."""
        if now >= self._report_at:
            self._report_at = now + _REPORT_AGAIN
            for death in self._unrecorded.values():
                self._send(death)

    def acknowledge(self, worker_id: str) -> None:
        self._unrecorded.pop(worker_id, None)

    def _send(self, death: Death) -> None:
        if self._monitor.channel is not None:
            self._monitor.channel.send_death(death)
