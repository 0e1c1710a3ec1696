"""How fast jobs come in."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from pgworker.inspection.snapshot import go_by_index, snapshot
from pgworker.sql.load import query


def count_arrivals(connection: Connection[Any], *, seconds: float, cap: int) -> dict[str, float]:
    """Jobs per second that were enqueued in each queue within the last seconds; of more than `cap`, the latest count.

    A job whose id was made elsewhere, or long before its commit, counts by the time in its id.
    """
    with snapshot(connection):
        go_by_index(connection)
        rows = connection.execute(query("count_arrivals"), {"seconds": seconds, "cap": cap}).fetchall()
    return {queue: jobs / span for queue, jobs, span in rows}
