"""Partitions: the days ahead get their tables before the first job needs one."""

from __future__ import annotations

from datetime import date
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.lifecycle.transaction import in_one_trip
from pgworker.sql.load import query


def make_partitions(connection: Connection[Any]) -> list[date]:
    """Make what is missing of yesterday to the day after tomorrow; the days that were made.

    What can't be made doesn't keep the others from it: its error is raised after them.
    psycopg.errors.LockNotAvailable: a reader was in the way for longer than 50 ms; try again later.
    psycopg.errors.ProgramLimitExceeded: the default partition holds too many rows of that day to move them at once.
    """
    days = [row[0] for row in connection.execute(query("list_days_ahead")).fetchall()]
    answers = {day: _make(connection, day) for day in days}
    for answer in answers.values():
        if isinstance(answer, psycopg.Error):
            raise answer
    return [day for day, answer in answers.items() if answer]


def _make(connection: Connection[Any], day: date) -> bool | psycopg.Error:
    try:
        return bool(in_one_trip(connection, query("make_partition"), {"day": day})[0][0])
    except psycopg.Error as error:
        return error
