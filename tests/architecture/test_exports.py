"""The public names of the package: a change here is a change for its users."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pgworker
from pgworker import errors, testing

PUBLIC = """
    App Task Enqueuer Context
    Queue ClaimedJob
    Job JobRequest JobHandle CancelCounts Progress Status Outcome CancelAnswer DeadLetter Org Backoff CancelReason
    JobControl Retry Discard Snooze Cancelled
    PgworkerError ConfigurationError RegistrationError SchemaError DatabaseUnavailable OutcomeUnknown
    InvalidFilter InvalidJob InvalidPayload JobNotFound LeaseLost
    JobFailed JobCancelled ErrorRecord InvalidResult WaitTimeout AppClosed
"""


def test_the_package_exports_exactly_the_public_names() -> None:
    assert sorted(pgworker.__all__) == sorted(PUBLIC.split())
    fresh = "import pgworker; print(*(n for n in dir(pgworker) if n[0] != '_'))"
    listed = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, check=True).stdout.split()
    assert set(listed) - {"annotations", "TYPE_CHECKING"} == set(pgworker.__all__)


def test_the_package_for_tests_exports_exactly_these() -> None:
    assert testing.__all__ == ["DrainedJob", "WaitingJob", "assert_enqueued", "drain", "drain_async"]
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name, "not the module of that name"
    with pytest.raises(AttributeError, match=r"module 'pgworker\.testing' has no attribute 'drane'"):
        getattr(testing, "drane")  # noqa: B009  mypy knows that it isn't there


def test_the_names_that_mypy_and_editors_see_are_those_at_run_time() -> None:
    tree = ast.parse(Path(pgworker.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    assert sorted(seen) == sorted(pgworker.__all__)
    for name, module in seen.items():
        assert getattr(pgworker, name) is getattr(import_module(module), name), name


def test_a_name_that_is_not_public_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pgworker' has no attribute 'Appp'"):
        getattr(pgworker, "Appp")  # noqa: B009  mypy knows that it isn't there


def test_every_error_is_exported() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(pgworker.__all__)
