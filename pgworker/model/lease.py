"""The life of a lease: how much of it is kept in reserve."""

from __future__ import annotations


def lease_margin(ttl: float) -> float:
    """Seconds before the end of a lease of `ttl` seconds at which nothing new starts under it and, if nobody renews it,
    its running job is asked to stop: 5, or a quarter of a short lease."""
    return min(5.0, ttl / 4)
