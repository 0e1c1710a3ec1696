"""Assertions on what waits in the queues."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from psycopg import AsyncConnection, AsyncCursor, Connection

from pgworker.app.app import App
from pgworker.app.targets import SyncDriver, Target, driver_of
from pgworker.app.task import Task
from pgworker.db.connect import connect_to_schema
from pgworker.errors import InvalidPayload
from pgworker.inspection.waiting import WaitingJob, list_waiting_jobs
from pgworker.model.payload import decode, encode_payload

_SHOWN = 20


def assert_enqueued(
    task: Task[..., Any] | str,
    arguments: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    queue: str | None = None,
    priority: int | None = None,
    run_at: datetime | None = None,
    org_id: str | None = None,
    using: Target | None = None,
) -> list[WaitingJob]:
    """That jobs of `task` wait, scheduled ones too, with at least these `arguments`, defaults included; those that do.

    `count`: exactly so many; None: one or more; 0: none. What is named besides must be equal. A task of another app is
    named by a string, and looked for where PGWORKER_DSN says. `using`: as `task.using`, for jobs of a transaction that
    is not committed yet. AssertionError, with what waits instead.
    """
    if not isinstance(task, Task | str):
        raise TypeError(f"assert_enqueued takes a task or the name of one, not {task!r:.60}")
    name = task if isinstance(task, str) else task.name
    options = {"queue": queue, "priority": priority, "run_at": run_at, "org_id": org_id}
    options = {option: value for option, value in options.items() if value is not None}
    wanted = decode(encode_payload(arguments or {}))
    waiting = _waiting(App().dsn if isinstance(task, str) else task.dsn, using)
    found = [
        job
        for job in waiting
        if job.task == name
        and all(getattr(job, option) == value for option, value in options.items())
        and wanted.items() <= _arguments(job, task).items()
    ]
    if found if count is None else len(found) == count:
        return found
    raise AssertionError(_complaint(name, wanted, options, count, len(found), waiting))


def _waiting(dsn: str, using: Target | None) -> list[WaitingJob]:
    if using is not None:
        return list_waiting_jobs(_connection(using))
    with connect_to_schema(dsn, application_name="pgworker test", prepare_threshold=None) as connection:
        return list_waiting_jobs(connection)


def _connection(using: Target) -> Connection[Any]:
    if isinstance(using, AsyncConnection | AsyncCursor):
        raise TypeError("assert_enqueued can't look through an asynchronous connection: commit, and leave out `using`")
    driver: SyncDriver = driver_of(using)
    return driver if isinstance(driver, Connection) else driver.connection


def _arguments(job: WaitingJob, task: Task[..., Any] | str) -> Mapping[str, Any]:
    """As JSON, with the defaults that are not stored; as they are stored where they no longer fit the task."""
    if isinstance(task, str):
        return job.payload
    try:
        full: Mapping[str, Any] = decode(encode_payload(task.decode(msgspec.json.encode(job.payload).decode())))
    except (msgspec.ValidationError, InvalidPayload):
        return job.payload
    return full


def _complaint(
    task: str,
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    count: int | None,
    found: int,
    waiting: list[WaitingJob],
) -> str:
    asked = f"{'a job' if count is None else f'exactly {count}'} of {task} with {dict(arguments)}"
    asked += "".join(f", {option}={value}" for option, value in options.items())
    there = "".join(
        f"\n  {job.task} {dict(job.payload)} queue={job.queue} priority={job.priority} run_at={job.run_at}"
        f" org_id={job.org_id}"
        for job in waiting[:_SHOWN]
    )
    more = f"\n  … and {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else ""
    return f"there should wait {asked}; found {found}. What waits:{there or ' nothing'}{more}"
