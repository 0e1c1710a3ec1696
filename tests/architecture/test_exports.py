"""The public names of the package: a change here is a change for its users."""

from __future__ import annotations

from types import ModuleType

import pgworker
from pgworker import errors

PUBLIC = """
    App Task Enqueuer Context
    Job JobRequest Backoff CancelReason
    JobControl Retry Discard Snooze Cancelled
    PgworkerError ConfigurationError RegistrationError SchemaError DatabaseUnavailable
    InvalidJob InvalidPayload JobNotFound LeaseLost
"""


def test_the_package_exports_exactly_the_public_names() -> None:
    assert sorted(pgworker.__all__) == sorted(PUBLIC.split())
    imported = {name for name, value in vars(pgworker).items() if not isinstance(value, ModuleType)}
    assert {name for name in imported if not name.startswith("_")} - {"annotations"} == set(pgworker.__all__)


def test_every_error_is_exported() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(pgworker.__all__)
