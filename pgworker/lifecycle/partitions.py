"""Partitions: the days ahead get their tables before the first job needs one."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from pgworker.sql.load import query


def make_partitions(connection: Connection[Any]) -> None:
    """Make what is missing of yesterday to the day after tomorrow.

    psycopg.errors.LockNotAvailable: a reader was in the way for longer than 50 ms; try again later.
    """
    connection.execute(query("make_partitions"))
