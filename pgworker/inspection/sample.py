"""What a database holds, for gauges: at a cost that is bounded, and in steps of which none holds a lock for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pgworker.inspection.dead_letters import count_dead_letters
from pgworker.inspection.queues import COUNT_CAP, MAX_QUEUES, QueueCounts, count_jobs, find_unserved, with_unserved
from pgworker.inspection.snapshot import look_no_longer_than, snapshot
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class Sample:
    """The first 100 queues by name; `dead_letters` and `default_jobs` are counted up to 10,000 and 10,001."""

    queues: list[QueueCounts]
    dead_letters: int
    default_jobs: int


def sample_database(connection: Connection[Any], *, patience: float, cap: int = COUNT_CAP) -> Sample:
    """Count what there is, in each queue up to `cap` due and `cap` later jobs.

    psycopg.errors.QueryCanceled if one of the statements takes longer than `patience` seconds.
    """
    with _look(connection, patience):
        dead_letters = count_dead_letters(connection, cap=cap).number
        default_jobs = count_default_jobs(connection)
    with _look(connection, patience):
        counted = count_jobs(connection, cap=cap, total=cap * MAX_QUEUES)
    with _look(connection, patience):
        unserved = find_unserved(connection)
    return Sample(with_unserved(counted, unserved), dead_letters, default_jobs)


def count_default_jobs(connection: Connection[Any]) -> int:
    """Jobs in the default partition, because their day had none: any is an alarm. At most 10,001 are counted."""
    count: int = connection.execute(query("count_default_jobs")).fetchall()[0][0]
    return count


@contextmanager
def _look(connection: Connection[Any], patience: float) -> Iterator[None]:
    """A transaction of its own for each: whoever makes or drops a partition waits for the locks of a reader."""
    with snapshot(connection):
        look_no_longer_than(connection, patience)
        yield
