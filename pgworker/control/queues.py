"""Pause and resume queues, for every pool on the database and at once: a claim looks whether its queues are paused.

What runs goes on, and so does what a worker has claimed already, about 50 ms of work; what waits there behind a long
job goes back to the queue. Nothing else of a paused queue starts until it is resumed. Jobs may be enqueued meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import Connection

from pgworker.model.names import check_queues
from pgworker.sql.load import query


def pause_queues(connection: Connection[Any], names: Iterable[str]) -> set[str]:
    """Pause these queues, used so far or not; returns those that were not paused before.

    InvalidJob for what can't name a queue. Commits only if the connection is in autocommit mode.
    """
    rows = connection.execute(query("pause_queues"), {"names": _checked(names)}).fetchall()
    return {row[0] for row in rows}


def resume_queues(connection: Connection[Any], names: Iterable[str]) -> set[str]:
    """Let these queues go on, and wake whoever serves them; returns those that were paused. Errors as above."""
    rows = connection.execute(query("resume_queues"), {"names": _checked(names)}).fetchall()
    return {row[0] for row in rows}


def _checked(names: Iterable[str]) -> list[str]:
    """Each once, in the order in which everybody locks them."""
    return sorted(check_queues(names))
