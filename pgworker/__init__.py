"""A job runner for Python on PostgreSQL: nothing lost, nothing finished twice, every death explained.

The public names are imported when they are first used: whoever wants a part of the package, as a command's help does,
need not load the database driver.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgworker.app.app import App
    from pgworker.app.context import Context
    from pgworker.app.handle import JobHandle
    from pgworker.app.orgs import Org
    from pgworker.app.queue.leases import ClaimedJob
    from pgworker.app.queue.postgres import Queue
    from pgworker.app.task import Enqueuer, Task
    from pgworker.errors import (
        AppClosed,
        Cancelled,
        ConfigurationError,
        DatabaseUnavailable,
        Discard,
        ErrorRecord,
        InvalidFilter,
        InvalidJob,
        InvalidPayload,
        InvalidResult,
        JobCancelled,
        JobControl,
        JobFailed,
        JobNotFound,
        LeaseLost,
        OutcomeUnknown,
        PgworkerError,
        RegistrationError,
        Retry,
        SchemaError,
        Snooze,
        WaitTimeout,
    )
    from pgworker.lifecycle.cancel import CancelCounts
    from pgworker.model.dead_letter import DeadLetter
    from pgworker.model.job import Job, JobRequest
    from pgworker.model.progress import Progress
    from pgworker.model.retry import Backoff
    from pgworker.model.state import CancelAnswer, CancelReason, Outcome, Status

__all__ = [
    "App",
    "AppClosed",
    "Backoff",
    "CancelAnswer",
    "CancelCounts",
    "CancelReason",
    "Cancelled",
    "ClaimedJob",
    "ConfigurationError",
    "Context",
    "DatabaseUnavailable",
    "DeadLetter",
    "Discard",
    "Enqueuer",
    "ErrorRecord",
    "InvalidFilter",
    "InvalidJob",
    "InvalidPayload",
    "InvalidResult",
    "Job",
    "JobCancelled",
    "JobControl",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobRequest",
    "LeaseLost",
    "Org",
    "Outcome",
    "OutcomeUnknown",
    "PgworkerError",
    "Progress",
    "Queue",
    "RegistrationError",
    "Retry",
    "SchemaError",
    "Snooze",
    "Status",
    "Task",
    "WaitTimeout",
]

_HOMES = {
    "App": "app.app",
    "Backoff": "model.retry",
    "CancelAnswer": "model.state",
    "CancelCounts": "lifecycle.cancel",
    "CancelReason": "model.state",
    "ClaimedJob": "app.queue.leases",
    "Context": "app.context",
    "DeadLetter": "model.dead_letter",
    "Enqueuer": "app.task",
    "Job": "model.job",
    "JobHandle": "app.handle",
    "JobRequest": "model.job",
    "Org": "app.orgs",
    "Outcome": "model.state",
    "Progress": "model.progress",
    "Queue": "app.queue.postgres",
    "Status": "model.state",
    "Task": "app.task",
}
"""The modules of the names that are no errors."""


if not TYPE_CHECKING:  # a type checker that saw it would take every misspelt name for an object

    def __getattr__(name: str) -> object:
        """PEP 562: asked once per name."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(_import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
