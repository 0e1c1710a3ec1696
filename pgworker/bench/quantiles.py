"""Many durations in a few numbers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

_EDGES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 50.0, 100.0, 500.0)
"""Milliseconds: the bounds of a histogram."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """In milliseconds; `count` of them were measured. None: of too few, so that it would be the longest of them."""

    count: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    max_ms: float

    @classmethod
    def of(cls, durations: Sequence[float]) -> Quantiles:
        """`durations` in milliseconds, at least one."""
        ordered = sorted(durations)

        def of_many(part: float, least: int) -> float | None:
            return percentile(ordered, part) if len(ordered) >= least else None

        return cls(
            len(ordered),
            percentile(ordered, 50),
            of_many(95, 20),
            of_many(99, 100),
            of_many(99.9, 1000),
            ordered[-1],
        )


def percentile(values: Sequence[float], part: float) -> float:
    """The least that `part` percent of them don't exceed (nearest rank): it has been measured, not interpolated."""
    return sorted(values)[max(0, math.ceil(len(values) * part / 100) - 1)]


def histogram(durations: Sequence[float]) -> list[tuple[float | None, int]]:
    """How many (of milliseconds) are above the bound before and not above this one; None: above all."""
    counts = [0] * (len(_EDGES) + 1)
    for duration in durations:
        counts[bisect_left(_EDGES, duration)] += 1
    return list(zip((*_EDGES, None), counts, strict=True))
