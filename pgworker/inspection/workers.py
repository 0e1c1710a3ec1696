"""Workers: which hosts have some, and which of them have gone silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pgworker.sql.load import query

SILENT_AFTER = 15.0
"""Seconds without a beat, of which there is one every 5."""

MAX_HOSTS = 100


@dataclass(frozen=True, slots=True)
class HostWorkers:
    """The worker processes of one host that have not ended; `last_beat` is in seconds ago."""

    host: str
    alive: int
    silent: int
    last_beat: float


def count_workers(connection: Connection[Any], *, silent_after: float = SILENT_AFTER) -> list[HostWorkers]:
    """The first 100 hosts by name; those without a beat for a day are left out."""
    rows = connection.execute(query("count_workers"), {"silent_after": silent_after, "limit": MAX_HOSTS}).fetchall()
    return [HostWorkers(*row) for row in rows]
