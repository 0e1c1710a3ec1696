"""The claim floors of a board, by queue and priority: claims of a lane start there, so no due job may lie below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from pgworker.lifecycle.claim import ClaimedRow, Lanes, floor_of
from pgworker.lifecycle.reclaim import Reclaimed
from pgworker.lifecycle.release import Returned
from pgworker.linux.floors import Floors, FloorsSeen, Place

_BEHIND_US = 250_000
"""Microseconds that a floor stays behind the claim that raises it: what was enqueued a moment before may be committed a
moment later, and whoever is told of it must find it."""


class LaneFloors:
    """Those of the lanes that are served here. A floor rises with what is claimed, and comes down to what goes back."""

    def __init__(self, floors: Floors, lanes: Lanes) -> None:
        self._floors = floors
        self._lanes = lanes

    def read(self) -> FloorsSeen:
        """All of them, as a claim takes them."""
        return self._floors.read()

    def rise(self, seen: FloorsSeen, rows: Sequence[ClaimedRow]) -> None:
        """Over what was claimed, one row at least, from the floors that the claim has `seen`."""
        one_lane = _lane(rows[0]) == _lane(rows[-1])  # they come lane by lane
        for (queue, priority), row in {_lane(row): row for row in (rows[-1:] if one_lane else rows)}.items():
            lane = self._lanes.index(queue, priority)
            if lane is not None:
                self._floors.advance(lane, seen.of(lane), _place_of(row))

    def lower(self, queue: str, priority: int, run_at: datetime, job_id: UUID) -> None:
        """Let claims find a job that is back in the queue, should its lane be served here."""
        lane = self._lanes.index(queue, priority)
        if lane is not None:
            self._floors.lower(lane, floor_of(run_at, job_id))

    def lower_to(self, returned: Iterable[Returned]) -> None:
        """Let claims find what was released."""
        for back in returned:
            self.lower(back.queue, back.priority, back.run_at, back.job_id)

    def lower_to_reclaimed(self, job: Reclaimed) -> bool:
        """Let claims find what a reclaim has sent back. False: it does not go back."""
        if job.queue is None or job.priority is None or job.run_at is None:
            return False
        self.lower(job.queue, job.priority, job.run_at, job.job_id)
        return True

    def lower_all(self) -> None:
        """Let claims look from the very beginning of each lane."""
        for lane in range(len(self._lanes)):
            self._floors.lower(lane, (0, 0))


def _lane(row: ClaimedRow) -> tuple[str, int]:
    return row.queue, row.priority


def _place_of(row: ClaimedRow) -> Place:
    """Where this job was; or earlier, if it was claimed sooner than `_BEHIND_US` after it was due."""
    run_at_us, job_id = row.place
    behind_us = _BEHIND_US - int(row.waited * 1_000_000)
    return (run_at_us, job_id) if behind_us <= 0 else (max(0, run_at_us - behind_us), 0)
