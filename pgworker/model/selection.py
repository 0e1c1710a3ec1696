"""Which jobs are meant, by what they have in common: for whatever is done to many at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgworker.errors import InvalidFilter, InvalidJob
from pgworker.model.durations import seconds
from pgworker.model.names import check_org, check_queue, check_task


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Jobs that have not ended, and match everything that is given here.

    `older_than`: enqueued longer ago, in seconds or as a timedelta, by the time in their ids. `waiting` and `running`:
    whether those that wait, or that a worker has claimed, are meant. InvalidFilter for one that would mean all jobs, or
    none, and for values that no job could have.
    """

    queue: str | None = None
    task: str | None = None
    org_id: str | None = None
    older_than: float | timedelta | None = None
    waiting: bool = True
    running: bool = True

    def __post_init__(self) -> None:
        if self.older_than is not None:
            object.__setattr__(self, "older_than", seconds(self.older_than, "older_than", error=InvalidFilter))
        if self.queue is None and self.task is None and self.org_id is None and not self.older_than:
            raise InvalidFilter(
                "this would mean every job there is: name a queue, a task, an organisation, or how old they must be"
            )
        if not self.waiting and not self.running:
            raise InvalidFilter("jobs that neither wait nor run have ended: choose one of the two, or leave both out")
        try:
            if self.queue is not None:
                object.__setattr__(self, "queue", check_queue(self.queue))
            if self.task is not None:
                object.__setattr__(self, "task", check_task(self.task))
            if self.org_id is not None:
                object.__setattr__(self, "org_id", check_org(self.org_id))
        except InvalidJob as problem:
            raise InvalidFilter(str(problem)) from None

    def parameters(self) -> dict[str, Any]:
        """What the statements that choose jobs are told."""
        return {"queue": self.queue, "task": self.task, "org_id": self.org_id, "older_than": self.older_than}

    def __str__(self) -> str:
        """For a sentence about them: "of queue mail and task shop.greet"."""
        age = "" if self.older_than is None else f"enqueued over {self.older_than:g} s ago"
        return ", ".join(filter(None, [of_these(self.queue, self.task, self.org_id).strip(), age]))


def of_these(queue: str | None, task: str | None, org: str | None) -> str:
    """For a sentence about jobs: " of queue mail and task shop.greet", or nothing if all of them are meant."""
    parts = [("queue", queue), ("task", task), ("organisation", org)]
    named = " and ".join(f"{what} {value}" for what, value in parts if value is not None)
    return f" of {named}" if named else ""
