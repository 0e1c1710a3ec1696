"""A job before it is stored (`JobRequest`) and as a handler sees it (`Job`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from pgworker.model.retry import DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5


class JobRequest(NamedTuple):
    """A job that has not been sent yet: the one unit of every enqueue.

    `payload` is JSON text of an object; `timeout` is in seconds, None means none; `run_at` is aware, None means now;
    `id` is a UUIDv7 of the caller's own, None lets the server make one.
    """

    task: str
    payload: str
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    run_at: datetime | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout: float | None = DEFAULT_TIMEOUT
    org_id: str | None = None
    headers: str | None = None
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job. `failures` are those charged before this execution; `timeout` is in seconds, None means none.

    Times are in UTC.
    """

    id: UUID
    task: str
    queue: str
    payload: Mapping[str, Any]
    priority: int
    execution: int
    failures: int
    max_attempts: int
    timeout: float | None
    run_at: datetime
    created_at: datetime
    org_id: str | None
    headers: Mapping[str, Any]
