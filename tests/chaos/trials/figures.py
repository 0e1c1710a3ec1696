"""Figures of trials: what there must be none of, what takes so many seconds, and what is only told."""

from __future__ import annotations

import re
from collections.abc import Sequence, Sized
from datetime import datetime
from typing import Any

from psycopg import Connection

from pgworker.bench import quantiles
from tests.chaos.trials.trial import Bench, Figure
from tests.sql.invariants import STORED, offences

_AWAY = re.compile(r"^(\S+Z) .*event=database_away", re.MULTILINE)


def none_of(name: str, found: int | Sized, among: str = "") -> Figure:
    """Something of which there must be none: how many there are, or what they are."""
    number = found if isinstance(found, int) else len(found)
    such = "" if isinstance(found, int) or not found else f": {str(found)[:600]}"
    return Figure(name, "0", f"{number:,}{f' of {among}' if among else ''}{such}", number == 0)


def told(name: str, found: str) -> Figure:
    """A number without a promise."""
    return Figure(name, "-", found, None)


def invariants(connection: Connection[Any]) -> Figure:
    """All that must be true of the stored jobs at any moment."""
    return none_of("invariants broken", offences(connection, STORED))


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest of them that so many percent don't exceed."""
    assert values, "nothing was measured"
    return quantiles.percentile(values, part)


def timed(bench: Bench, size: int, holds: bool) -> bool | None:
    """Whether a time is as promised; None if it is not in a trial smaller than this: a busy machine is slow."""
    return holds or (False if bench.size >= size else None)


def in_time(bench: Bench, size: int, name: str, promised: float, seconds: float) -> Figure:
    """Fewer seconds than are promised, judged as `timed` does."""
    return Figure(name, f"< {promised:g} s", f"{seconds:.2f} s", timed(bench, size, seconds < promised))


def durations(name: str, promised: float | None, seconds: Sequence[float], part: float = 99) -> Figure:
    """Seconds as p50, p99 and the longest; at most `part` percent of them may be longer than what is promised."""
    p50, p99, longest = percentile(seconds, 50), percentile(seconds, 99), max(seconds)
    found = f"p50 {p50:.2f} p99 {p99:.2f} max {longest:.2f} s (n={len(seconds)})"
    if promised is None:
        return told(name, found)
    return Figure(name, f"p{part:g} < {promised:g} s", found, percentile(seconds, part) < promised)


def one_line_a_second(bench: Bench, size: int, log: str) -> Figure:
    """The most lines of a pool's log on an outage that lie within one second, judged as `timed` does."""
    times = [datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() for at in _AWAY.findall(log)]
    lines = max((sum(first <= at < first + 0.99 for at in times) for first in times), default=0)
    return Figure("lines that say so in one second", "1", str(lines), timed(bench, size, lines <= 1))
