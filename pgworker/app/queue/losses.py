"""Losses: executions that were not recorded, as their lease is gone and somebody else has their jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import Connection

from pgworker.app.queue.leases import HeldLease
from pgworker.lifecycle.claim import ClaimedRow
from pgworker.lifecycle.settle import Settlement, find_unsettled
from pgworker.linux.row import BoardRow
from pgworker.model.state import Outcome
from pgworker.observe.logs import fields, logger

log = logger("queue")


class Losses:
    """`on_lost` hears of each execution, and what it had ended as; `on_lease_lost` of each lease, once."""

    def __init__(
        self, row: BoardRow, on_lost: Callable[[ClaimedRow, Outcome], object], on_lease_lost: Callable[[], object]
    ) -> None:
        self._row = row
        self._on_lost = on_lost
        self._on_lease_lost = on_lease_lost

    def tell(self, connection: Connection[Any], lease: HeldLease, settlement: Settlement) -> None:
        """A settlement that recorded less than it should: sent before and committed, or its lease is gone."""
        with connection.cursor() as cursor:
            unsettled = find_unsettled(cursor, settlement)
        if not unsettled:
            return
        self.lose(lease)
        for position, run in enumerate(settlement.ended, start=settlement.first):
            if run in unsettled and run is not None:
                log.error(
                    "the lease %s is gone: %d of %d results were not recorded; their jobs were given to another worker",
                    lease.lease_id,
                    len(unsettled),
                    len(settlement.executions),
                    extra=fields("result_lost", **lease.log_fields(position), outcome=run.outcome.value),
                )
                self._on_lost(lease.rows[position - 1], run.outcome)

    def lose(self, lease: HeldLease) -> None:
        """Found gone here. Who finds it first, we or the monitor when it renews, counts it."""
        if not self._row.is_lost(lease.entry):
            self._row.lose(lease.entry)
            self._on_lease_lost()
