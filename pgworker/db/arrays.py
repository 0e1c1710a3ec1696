"""Arrays as parameters."""

from __future__ import annotations

from collections.abc import Iterable


def number_array(numbers: Iterable[int | None]) -> str:
    """As PostgreSQL spells an array. The driver would choose the smallest integer type that holds them all, and with it
    another prepared statement for almost every call; and it takes four times as long."""
    return "{" + ",".join(map(str, numbers)).replace("None", "null") + "}"
