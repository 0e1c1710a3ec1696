"""Durations as people write them, and as the rest of the package computes with them: seconds, a float."""

from __future__ import annotations

from datetime import timedelta

from pgworker.errors import InvalidJob
from pgworker.model import exact

MAX_SECONDS = 100 * 365 * 86_400.0
"""A century: more is a wrong unit, and PostgreSQL could not add it to every timestamp."""


_SCALE = ((1.0, 0.001, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "m"), (172_800.0, 3600.0, "h"))


def duration(seconds: float) -> str:
    """`35ms`, `12s`, `3m`, `5h`, `2d`: the two digits that matter, for a narrow column or a sentence."""
    amount = max(0.0, seconds)
    for limit, unit, name in _SCALE:
        if amount < limit:
            shown = f"{amount / unit:.1f}" if name == "s" and amount < 10 else f"{amount / unit:.0f}"
            return f"{shown}{name}"
    return f"{amount / 86_400:.0f}d"


def seconds(value: object, what: str = "a duration", *, error: type[Exception] = InvalidJob) -> float:
    """`value`, a number of seconds or a timedelta, as seconds; `error`, naming `what`, for anything else.

    Negative, infinite, NaN, over a century, bool (an int to Python) and str are all refused.
    """
    number = exact.number(timedelta.total_seconds(value) if isinstance(value, timedelta) else value)
    if number is None:
        raise error(f"{what} must be a number of seconds or a timedelta, not {exact.type_name(value)}")
    if not 0 <= number <= MAX_SECONDS:  # false for NaN too
        raise error(f"{what} must be between 0 seconds and 100 years, not {number if _printable(number) else 'more'}")
    return float(number)


def _printable(number: float) -> bool:
    """Whether it is worth printing: an int of a million digits is not, and Python refuses to."""
    return not isinstance(number, int) or abs(number) < 10**18
