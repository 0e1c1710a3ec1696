"""Doubts: what was recorded by one server may be unknown to the next one.

That may be a standby that was promoted since, and that has not heard of the last settlements, transactions and
releases. To end a lease there on the strength of them would leave their jobs nowhere. Another connection may lead to
another server; so may, behind a pooler, the same one, which is why each trip asks the server who it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from psycopg import Connection

from pgworker.app.queue.leases import HeldLease
from pgworker.lifecycle.floors import LaneFloors
from pgworker.lifecycle.reclaim import Findings, Reclaimable, ReclaimedLease, TakenLease, reclaim_lease
from pgworker.lifecycle.renew import renew_leases
from pgworker.linux.row import BoardRow
from pgworker.model.retry import Backoff
from pgworker.observe.logs import fields, logger

log = logger("queue")


class Doubts:
    """Marks leases as doubtful, and ends those of which all is settled by what the server knows."""

    def __init__(self, row: BoardRow, floors: LaneFloors, lease_ttl: float) -> None:
        self._row = row
        self._floors = floors
        self._lease_ttl = lease_ttl
        self._known: Connection[Any] | None = None

    def doubt_if_reconnected(self, connection: Connection[Any], leases: Iterable[HeldLease]) -> None:
        """Doubt these, if another connection than for the last trip is used for the next one."""
        if connection is self._known:
            return
        self._known = connection
        for lease in leases:
            lease.is_doubtful = True

    def compare(self, server: datetime | None, leases: Iterable[HeldLease]) -> None:
        """Doubt those that were claimed from another server than the one that has answered."""
        for lease in leases:
            if lease.server != server:
                lease.is_doubtful = True

    def reclaim(self, connection: Connection[Any], lease: HeldLease) -> bool:
        """End a lease of which all is settled by sending on what the server has no execution of, uncharged.

        False: somebody has it in hand, ask again."""
        asked = Reclaimable(lease.lease_id, self._row.worker_id, self._row.slots, None, only_expired=False)
        done = reclaim_lease(connection, asked, _none_has_started, Backoff())
        if done is None:  # a renewal tells a lease that is gone from one that is locked
            return lease.lease_id not in renew_leases(connection, [lease.lease_id], self._lease_ttl)
        self._log_forgotten(lease, done)
        return True

    def _log_forgotten(self, lease: HeldLease, done: ReclaimedLease) -> None:
        """Of the results that are not there any more; their jobs are to be found again."""
        ids = [row.job_id for row in lease.rows]
        for job in done.jobs:
            if not self._floors.lower_to_reclaimed(job):
                continue
            who = lease.log_fields(ids.index(job.job_id) + 1)
            log.error(
                "the server does not know how this job has ended: it runs again. Was a standby promoted that lagged?",
                extra=fields("result_forgotten", **who),
            )


def _none_has_started(taken: TakenLease) -> Findings:
    """As the server has it, which does not know better."""
    nothing: list[None] = [None] * len(taken.job_ids)
    return Findings(nothing, nothing, "the server has lost what was recorded of it")
