"""A job runner for Python on PostgreSQL: nothing lost, nothing finished twice, every death explained."""

from __future__ import annotations

from pgworker.app.app import App
from pgworker.app.context import Context
from pgworker.app.task import Enqueuer, Task
from pgworker.errors import (
    Cancelled,
    ConfigurationError,
    DatabaseUnavailable,
    Discard,
    InvalidJob,
    InvalidPayload,
    JobControl,
    JobNotFound,
    LeaseLost,
    PgworkerError,
    RegistrationError,
    Retry,
    SchemaError,
    Snooze,
)
from pgworker.model.job import Job, JobRequest
from pgworker.model.retry import Backoff
from pgworker.model.state import CancelReason

__all__ = [
    "App",
    "Backoff",
    "CancelReason",
    "Cancelled",
    "ConfigurationError",
    "Context",
    "DatabaseUnavailable",
    "Discard",
    "Enqueuer",
    "InvalidJob",
    "InvalidPayload",
    "Job",
    "JobControl",
    "JobNotFound",
    "JobRequest",
    "LeaseLost",
    "PgworkerError",
    "RegistrationError",
    "Retry",
    "SchemaError",
    "Snooze",
    "Task",
]
