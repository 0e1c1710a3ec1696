"""Says when the database answers too slowly for the leases: then they end before they can be renewed."""

from __future__ import annotations

from pgworker.observe import logs

_ROUND_TRIPS = 5  # that a lease must outlast: one when a third of it is over, behind another, and a reserve

log = logs.logger("monitor")


class SlowLine:
    """`ttl`: seconds that leases last."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._is_slow = False
        self._throttle = logs.Throttle(interval=60.0)

    def note_trip(self, seconds: float) -> None:
        """Warn after the second round trip in a row that took too long."""
        was_slow, self._is_slow = self._is_slow, seconds * _ROUND_TRIPS > self._ttl
        if was_slow and self._is_slow and (more := self._throttle.admit("slow line")) is not None:
            log.warning(
                "the database takes %.1f s for an answer: leases of %g s can't be renewed in time, and their jobs are"
                " stopped. Set --lease-ttl to %.0f s or more%s",
                seconds,
                self._ttl,
                2 * _ROUND_TRIPS * seconds + 1,
                more,
                extra=logs.fields("line_slow"),
            )
