"""Partitions: the days ahead get their tables before the first job needs one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from pgworker.lifecycle.transaction import execute_alone
from pgworker.sql.load import query

_TRIES = 3
_PAUSE = 0.2  # seconds between two of them

_Answer = TypeVar("_Answer")


def make_partitions(connection: Connection[Any]) -> list[date]:
    """Make what is missing of yesterday to the day after tomorrow; the days that were made.

    What can't be made doesn't keep the others from it: its error is raised after them.
    psycopg.errors.LockNotAvailable: a reader was in the way, three times for longer than 50 ms; try again later.
    psycopg.errors.ProgramLimitExceeded: the default partition holds too many rows of that day to move them at once.
    """
    days = [row[0] for row in connection.execute(query("list_days_ahead")).fetchall()]
    answers = {day: _make(connection, day) for day in days}
    for answer in answers.values():
        if isinstance(answer, psycopg.Error):
            raise answer
    return [day for day, answer in answers.items() if answer]


def when_free(act: Callable[[], _Answer]) -> _Answer:
    """What it returns; tried three times within half a second while tables are locked by others.

    A claim of a busy pool may hold them for 50 ms, but not for long. psycopg.errors.LockNotAvailable: somebody does.
    """
    for _ in range(_TRIES - 1):
        with suppress(psycopg.errors.LockNotAvailable):
            return act()
        time.sleep(_PAUSE)
    return act()


def _make(connection: Connection[Any], day: date) -> bool | psycopg.Error:
    try:
        return bool(when_free(lambda: execute_alone(connection, query("make_partition"), {"day": day}))[0][0])
    except psycopg.Error as error:
        return error
