"""The database's clock, by which leases expire, held against our own monotonic one.

Set forward by an hour it shows every lease of every pool as over, until each pool has renewed its own. So a monitor
says up to which time it trusts that clock, and doesn't for the life of a lease once it has been set.
"""

from __future__ import annotations

from datetime import datetime, timedelta

_SLACK = 2.0
"""Seconds between two looks by which the clocks may differ: drift, slewing, and statements that take their time."""


class DatabaseClock:
    """What that clock showed at our last beat. Times of ours are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._shown: datetime | None = None
        self._seen_at = 0.0

    def see(self, shown: datetime, sent: float, answered: float) -> float:
        """Asked at `sent` it showed this; by how many seconds it was set since we last saw it, 0.0: it was not."""
        before, seen_at = self._shown, self._seen_at
        self._shown, self._seen_at = shown, answered
        if before is None:
            return 0.0
        ahead = (shown - before).total_seconds() - (answered - seen_at)
        took = answered - sent
        return ahead if ahead > _SLACK or ahead < -_SLACK - took else 0.0

    def latest(self, now: float) -> datetime | None:
        """What it shows by now at most, unless it was set forward; None: never seen."""
        return None if self._shown is None else self._shown + timedelta(seconds=now - self._seen_at + _SLACK)
