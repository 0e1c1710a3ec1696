"""What jobs say of themselves on its way from their threads to the clerk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from pgworker.app.queue.leases import ClaimedJob
from pgworker.model.progress import ProgressUpdate, check_progress
from pgworker.worker.execution import take_progress


class Chatter(dict[tuple[UUID, int], tuple[ClaimedJob, ProgressUpdate]]):
    """Those of a worker in which a job in another thread speaks whenever somebody looks how many there are."""

    def __len__(self) -> int:
        found = super().__len__()
        self[uuid4(), 1] = self.latest
        return found

    latest: tuple[ClaimedJob, ProgressUpdate]


def test_what_a_job_said_before_it_ended_is_taken_with_its_end_whoever_speaks_meanwhile() -> None:
    chatter = Chatter()
    first, second = (check_progress(uuid4(), 0.5, "", {"at": at}) for at in (1, 2))
    job: Any = SimpleNamespace()  # nobody looks into it
    chatter[uuid4(), 1] = job, first
    chatter.latest = job, second
    assert first in [said for _, said in take_progress(chatter)]
