"""Durations as people write them, and as the rest of the package computes with them: seconds, a float."""

from __future__ import annotations

from datetime import timedelta

from pgworker.errors import InvalidJob

MAX_SECONDS = 100 * 365 * 86_400.0
"""A century: more is a wrong unit, and PostgreSQL could not add it to every timestamp."""


def seconds(value: object, what: str = "a duration", *, error: type[Exception] = InvalidJob) -> float:
    """`value`, a number of seconds or a timedelta, as seconds; `error`, naming `what`, for anything else.

    Negative, infinite, NaN, over a century, bool (an int to Python) and str are all refused.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise error(f"{what} must be a number of seconds or a timedelta, not {type(value).__name__}")
    if not 0 <= number <= MAX_SECONDS:  # false for NaN too
        raise error(f"{what} must be between 0 seconds and 100 years, not {number if _printable(number) else 'more'}")
    return float(number)


def _printable(number: float) -> bool:
    """Whether it is worth printing: an int of a million digits is not, and Python refuses to."""
    return not isinstance(number, int) or abs(number) < 10**18
