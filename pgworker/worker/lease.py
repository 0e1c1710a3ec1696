"""What a worker holds: its leases, and the jobs in them. Made by the clerk, run by the runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from pgworker.lifecycle.claim import ClaimedRow
from pgworker.lifecycle.settle import Ended, Settlement


@dataclass(slots=True)
class HeldLease:
    """One lease: `count` positions are ours, the first `settled` of them recorded, `ready` those that ended since.

    In `ready` stands None for an execution that the handler's own transaction has recorded already. While its tail is
    going back (`is_going_back`) the lease must not end: it is all that the database knows of these jobs.
    """

    lease_id: UUID
    entry: int
    count: int
    settled: int = 0
    ready: list[Ended | None] = field(default_factory=list)
    is_going_back: bool = False
    is_ended: bool = False

    @property
    def _ends(self) -> bool:
        return not self.is_going_back and self.settled + len(self.ready) >= self.count

    def settlements(self) -> list[Settlement]:
        """What there is to settle now, in stretches of neighbours; the last one ends the lease if all have ended."""
        stretches: list[tuple[int, list[Ended]]] = []
        for position, ended in enumerate(self.ready, start=self.settled + 1):
            if ended is None:
                continue
            if stretches and stretches[-1][0] + len(stretches[-1][1]) == position:
                stretches[-1][1].append(ended)
            else:
                stretches.append((position, [ended]))
        ends = self._ends
        if ends and (not stretches or self.ready[-1] is None):
            stretches.append((self.settled + len(self.ready) + 1, []))
        return [
            Settlement(self.lease_id, first, runs, ends_lease=ends and index == len(stretches) - 1)
            for index, (first, runs) in enumerate(stretches)
        ]

    def mark_settled(self) -> None:
        """What `settlements` named is recorded."""
        self.is_ended = self._ends
        self.settled += len(self.ready)
        self.ready = []

    def keep(self, count: int) -> None:
        """The positions beyond `count` are going back."""
        self.count = min(self.count, count)
        self.is_going_back = True

    def mark_gone_back(self) -> None:
        """They are back. A lease that went back whole has ended with that."""
        self.is_going_back = False
        self.is_ended = self.count == 0


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job to run: its row, and its place in a lease."""

    lease: HeldLease
    position: int
    row: ClaimedRow
