"""An execution without monitor and master: it looks for itself whether it is to stop, whenever its handler asks."""

from __future__ import annotations

import time
from typing import Any

from psycopg import Connection

from pgworker.lifecycle.renew import renew_leases
from pgworker.model.state import CancelReason
from pgworker.worker.execution import Execution

LEASE_TTL = 3600.0
"""Seconds: leases are renewed only when a handler asks, and a debugger may stop it for long."""


class WatchedExecution(Execution):
    """Renews its lease through the connection that it is watched over, and learns from that what a monitor would."""

    __slots__ = ("_connection",)

    _connection: Connection[Any]

    def watch(self, connection: Connection[Any]) -> None:
        """Look there from now on, until it has ended."""
        self._connection = connection

    @property
    def reason(self) -> CancelReason:
        row, index = self.slot.row, self.slot.index
        found = row.cancel_reason(index, self._sequence)
        run = row.run(index)
        if found is CancelReason.NONE and run is not None and run.sequence == self._sequence:
            found = self._look()
            if found is not CancelReason.NONE:
                row.ask_cancel(run, found)
        return found

    def _look(self) -> CancelReason:
        if self._deadline_ns and time.monotonic_ns() >= self._deadline_ns:
            return CancelReason.DEADLINE
        lease_id = self.claimed.lease.lease_id
        renewal = renew_leases(self._connection, [lease_id], LEASE_TTL).get(lease_id)
        if renewal is None:
            return CancelReason.LEASE_LOST
        return CancelReason.CANCELLED if self.claimed.position in renewal.cancelled else CancelReason.NONE
