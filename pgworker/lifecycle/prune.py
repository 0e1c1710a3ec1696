"""Prune: days that have expired are dropped, and what still waits of them is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.config.settings import SHORTEST_RETENTION
from pgworker.errors import ConfigurationError
from pgworker.lifecycle.partitions import when_free
from pgworker.lifecycle.transaction import execute_alone
from pgworker.model.durations import seconds
from pgworker.sql.load import query


class PruneAction(str, Enum):
    """What became of an expired partition."""

    DROPPED = "dropped"
    WOULD_DROP = "would drop"
    """a dry run"""
    BUSY = "busy"
    """somebody was in the way for longer than 50 ms; nothing was changed"""


@dataclass(frozen=True, slots=True)
class PrunedPartition:
    """One day of jobs and their executions. `kept` of its jobs wait, run, or have ended within the last day.

    Without `day`: what was kept of earlier days (jobs_before_…), or expired jobs of the default partition.
    Counts above 100,000 are estimates. `bytes`: what dropping it frees, before what is kept takes its share.
    """

    name: str
    day: date | None
    jobs: int
    executions: int
    kept: int
    bytes: int
    action: PruneAction
    why: str | None = None
    """... it is busy"""


def prune(connection: Connection[Any], older_than: object, *, dry_run: bool = False) -> list[PrunedPartition]:
    """Drop the days that ended longer ago than `older_than` (seconds or timedelta, at least a day).

    All of them or, if a reader or somebody else's prune is in the way for longer than 50 ms at three tries, none: then
    they are BUSY, and it is worth trying again. The connection must be in autocommit mode.
    """
    parameters = {"older_than": check_retention(older_than, "older_than")}
    rows = connection.execute(query("list_expired_partitions"), parameters).fetchall()
    found = [
        PrunedPartition(name, day, jobs, executions, kept, size, PruneAction.WOULD_DROP)
        for name, day, jobs, executions, kept, size in rows
    ]
    if dry_run or not found:
        return found
    try:
        is_done = _drop(connection, parameters)
    except psycopg.errors.LockNotAvailable as error:
        why = _why(error)
    else:
        if is_done:
            return [replace(partition, action=PruneAction.DROPPED) for partition in found]
        why = "midnight has passed meanwhile"
    return [replace(partition, action=PruneAction.BUSY, why=why) for partition in found]


def check_retention(value: object, what: str) -> float:
    """`value` as seconds; ConfigurationError if it is less than a day, within which producers make ids."""
    number = seconds(value, what, error=ConfigurationError)
    if number < SHORTEST_RETENTION:
        raise ConfigurationError(f"{what} must be at least 1 day, not {number:g} s")
    return number


def _drop(connection: Connection[Any], parameters: dict[str, Any]) -> bool:
    when_free(lambda: execute_alone(connection, query("watch_expired_partitions"), parameters))
    return bool(execute_alone(connection, query("drop_expired_partitions"), parameters)[0][0])


def _why(error: psycopg.Error) -> str:
    words = error.diag.message_primary or ""
    if "lock timeout" in words:
        return "a transaction that reads or writes jobs was in the way for longer than 50 ms"
    return words
