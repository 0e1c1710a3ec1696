"""Faults of what is in the database, and of what others do there."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import psycopg

from tests.chaos.faults.fault import Fault
from tests.chaos.world import World


def commit_late(world: World, dice: random.Random) -> None:
    """A transaction that enqueues stays open while the others go on, and commits behind their backs."""
    world.enqueue("plain", *([0.0] for _ in range(dice.randint(1, 20))), open_for=dice.uniform(0.5, 5))


def storm_of_notifications(world: World, dice: random.Random) -> None:
    """Many who notify, all at once, some of it nonsense."""
    ends = time.monotonic() + dice.uniform(0.5, 2)

    def notify() -> None:
        with suppress(psycopg.Error), world.connect() as connection:
            while time.monotonic() < ends:
                connection.execute("select pg_notify('pgworker', md5(clock_timestamp()::text))")

    threads = [threading.Thread(target=notify, daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def block_retention(world: World, dice: random.Random) -> None:
    """Somebody reads all of the tables, slowly, with a cursor."""
    with world.connect() as connection, connection.transaction(), connection.cursor("reader") as cursor:
        cursor.execute("select * from pgworker.jobs, pgworker.job_executions")
        cursor.fetchmany(10)
        world.pause(dice.uniform(1, 4))


def lose_partition(world: World, dice: random.Random) -> None:
    """Tomorrow's partition is gone, and the day after's: they are made anew."""
    day = datetime.now(timezone.utc) + timedelta(days=dice.choice([1, 2]))
    with world.connect() as connection, suppress(psycopg.errors.LockNotAvailable):
        connection.execute("set lock_timeout = '200ms'")
        for table in ("jobs", "job_executions"):
            connection.execute(f"drop table if exists pgworker.{table}_{day:%Y%m%d}".encode())


def vacuum(world: World, dice: random.Random) -> None:
    """At the worst moment."""
    with world.connect() as connection:
        connection.execute("vacuum (analyze) pgworker.job_queue, pgworker.job_leases, pgworker.job_executions")


FAULTS = (
    Fault(25, "late-commit", commit_late, touches="data"),
    Fault(27, "notification-storm", storm_of_notifications, touches="data"),
    Fault(30, "retention-blocked", block_retention, touches="data", every=5.0),
    Fault(30, "partition-lost", lose_partition, touches="data", every=5.0),
    Fault(30, "vacuum", vacuum, touches="data"),
)
