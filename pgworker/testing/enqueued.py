"""Assertions on what waits in the queues."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg import Connection

from pgworker.app.app import App
from pgworker.app.task import Task
from pgworker.db.connect import connect_to_schema
from pgworker.inspection.waiting import WaitingJob, list_waiting_jobs

_SHOWN = 20


def assert_enqueued(
    target: App | Connection[Any],
    task: Task[..., Any] | str,
    arguments: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    queue: str | None = None,
    priority: int | None = None,
    org_id: str | None = None,
    run_at: datetime | None = None,
) -> list[WaitingJob]:
    """That jobs of `task` wait, with at least these `arguments` (as JSON stores them); those that do.

    `target` is the App, or a connection whose transaction is not committed yet. `count`: exactly so many; None: one or
    more; 0: none. What is named besides must be equal. AssertionError, with what waits instead.
    """
    name = task if isinstance(task, str) else task.name
    if isinstance(target, App):
        with connect_to_schema(target.dsn, application_name="pgworker test", prepare_threshold=None) as connection:
            waiting = list_waiting_jobs(connection)
    else:
        waiting = list_waiting_jobs(target)
    wanted = {"task": name, "queue": queue, "priority": priority, "org_id": org_id, "run_at": run_at}
    wanted = {field: value for field, value in wanted.items() if value is not None}
    found = [job for job in waiting if _fits(job, wanted, arguments or {})]
    if (count is None and found) or len(found) == count:
        return found
    asked = "at least one" if count is None else count
    told = "".join(f"\n  {job}" for job in waiting[:_SHOWN]) or " nothing"
    more = f"\n  … and {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else ""
    raise AssertionError(
        f"{asked} job of {wanted} with {dict(arguments or {})} should wait, not {len(found)}; there waits:{told}{more}"
    )


def _fits(job: WaitingJob, wanted: Mapping[str, object], arguments: Mapping[str, Any]) -> bool:
    missing = object()
    return all(getattr(job, field) == value for field, value in wanted.items()) and all(
        job.payload.get(name, missing) == value for name, value in arguments.items()
    )
