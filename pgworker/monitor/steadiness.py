"""Since when a monitor has beaten and looked without a gap.

The first one back after an outage must not take what everybody is about to settle: what kept it from its work may have
kept others from renewing their leases. All times are seconds of the monotonic clock.
"""

from __future__ import annotations

_LATE = 5.0  # seconds that a beat may be late at least before it counts as a gap


class Steadiness:
    """`interval`: seconds between two beats. `ttl`: seconds that leases last, and that it takes to be steady."""

    def __init__(self, interval: float, ttl: float) -> None:
        self._interval = interval
        self._ttl = ttl
        self._last_beat = 0.0
        self._since: float | None = None

    def is_steady(self, now: float) -> bool:
        """Whether there was no gap for a whole TTL: whose lease has expired by now has had the time to renew it."""
        return self._since is not None and now - self._since > self._ttl and not self._is_late(now)

    def note_beat(self, now: float, *, is_clock_set: bool) -> None:
        """A beat is done; one that took long was a gap too. The database's clock may have been set since the last."""
        if is_clock_set or self._is_late(now):
            self._begin_anew(now)
        self._last_beat = now

    def note_look(self, now: float) -> None:
        """A look for leases is done: the first one since `note_loss` is what steadiness begins with."""
        if self._since is None:
            self._since = now

    def note_statement(self, sent: float, now: float) -> None:
        """What holds us up for half a TTL may have kept others from renewing, too."""
        if now - sent > self._ttl / 2:
            self._begin_anew(now)

    def note_loss(self) -> None:
        """The connection is lost."""
        self._since = None

    def _begin_anew(self, now: float) -> None:
        if self._since is not None:
            self._since = now

    def _is_late(self, now: float) -> bool:
        return now - self._last_beat > self._interval + max(self._interval, _LATE)
