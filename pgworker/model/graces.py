"""How long a run that must stop gets at each step of the kill ladder."""

from __future__ import annotations

from dataclasses import dataclass

from pgworker.model.state import CancelReason

SHUTDOWN_GRACE = 2.0
"""Seconds between the flag and the kill at the end of a drain; they are the last ones of the drain timeout."""

_LEASE_GRACE = 2.5  # seconds: a job without a lease must be gone before its lease is over


@dataclass(frozen=True, slots=True)
class Graces:
    """Seconds: from the flag to SIGTERM, and from there to SIGKILL.

    A run on the event loop has one step more in between: its task is cancelled where a run in a thread gets SIGTERM,
    and SIGTERM comes `term` seconds later. When time is short, at half of it and at its end.
    """

    cancel: float
    term: float
    lease_ttl: float

    def before_cancel_ns(self, reason: CancelReason) -> int:
        """From the flag to `task.cancel()`."""
        grace = self.before_term_ns(reason, is_async=False)
        return grace // 2 if reason in _URGENT else grace

    def before_term_ns(self, reason: CancelReason, *, is_async: bool) -> int:
        if reason is CancelReason.LEASE_LOST:
            return int(min(self.cancel, _LEASE_GRACE, self.lease_ttl / 4) * 1e9)
        if reason is CancelReason.SHUTDOWN:
            return int(SHUTDOWN_GRACE * 1e9)
        return int((self.cancel + (self.term if is_async else 0.0)) * 1e9)

    def before_kill_ns(self, reason: CancelReason) -> int:
        """From SIGTERM to SIGKILL."""
        return 0 if reason in _URGENT else int(self.term * 1e9)


_URGENT = (CancelReason.LEASE_LOST, CancelReason.SHUTDOWN)
