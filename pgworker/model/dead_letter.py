"""A job that was given up, as its `on_dead_letter` hook sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pgworker.model.failure import why_failed
from pgworker.model.state import Outcome


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job, and the last of its executions.

    `payload` is None if it was too large to be copied into the hook's own job; `error` has `type`, `message` and
    `traceback`, and is None for an execution that could not say why it ended: then `cause` says how.
    """

    id: UUID
    task: str
    queue: str
    payload: Mapping[str, Any] | None
    org_id: str | None
    headers: Mapping[str, Any] | None
    execution: int
    failures: int
    max_attempts: int
    outcome: Outcome
    error: Mapping[str, Any] | None
    cause: str | None
    created_at: datetime
    died_at: datetime

    @property
    def reason(self) -> str:
        """Why, in a line: the cause, else the error, else the outcome."""
        return why_failed(self.outcome.value, self.error, self.cause)
