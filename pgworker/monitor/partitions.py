"""Partitions: once an hour, the days ahead are made and the expired ones dropped.

In a thread with a connection of its own, because dropping copies what still waits: renewals must not wait for that.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from threading import Event, Thread
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.db.connect import connect_to_schema, explain, is_outage
from pgworker.db.patience import LONGEST
from pgworker.errors import PgworkerError
from pgworker.inspection.database import read_clock
from pgworker.inspection.sample import count_default_jobs
from pgworker.lifecycle.heartbeat import forget_workers
from pgworker.lifecycle.partitions import make_partitions
from pgworker.lifecycle.progress import prune_progress
from pgworker.lifecycle.prune import PruneAction, PrunedPartition, prune
from pgworker.observe import logs

_EVERY = 3600.0
_RETRY = 60.0
_SECONDS_AHEAD = 86400.0  # of our clock that the server's may be; if it is more, nothing is dropped

log = logs.logger("monitor")


class Partitions:
    """Keeps partitions for as long as the process lives."""

    def __init__(self, dsn: str, retention: float) -> None:
        self._dsn = dsn
        self._retention = retention
        self.tried = Event()
        """Set once the days ahead were to be made: a reader that comes sooner would be in the way."""

    def keep_in_thread(self) -> None:
        """It ends with the process: whatever it does is one transaction or another."""
        Thread(target=self._keep, name="partitions", daemon=True).start()

    def _keep(self) -> None:
        while True:
            time.sleep(_EVERY if self._keep_once() else _RETRY)

    def _keep_once(self) -> bool:
        """One round. False: something is to be tried again soon, and the log says what."""
        try:
            with connect_to_schema(
                self._dsn,
                application_name="pgworker monitor, partitions",
                prepare_threshold=None,
                patience=LONGEST,
                accepts_newer=True,
            ) as connection:
                is_made = self._make(connection)
                self.tried.set()
                self._look_at_default(connection)
                is_pruned = self._is_clock_right(connection) and self._prune(connection)
                forget_workers(connection)
                prune_progress(connection)
        except (psycopg.Error, OSError, PgworkerError) as error:
            if not is_outage(error):  # the monitor's other connection says that the database is away
                log.error(
                    "partitions can't be looked after: %s",
                    explain(error, self._dsn),
                    extra=logs.fields("partition_failed"),
                )
            return False
        return is_made and is_pruned

    def _make(self, connection: Connection[Any]) -> bool:
        try:
            made = make_partitions(connection)
        except psycopg.errors.LockNotAvailable:
            log.warning(
                "a partition could not be made yet, a long transaction is in the way; trying again in a minute",
                extra=logs.fields("partition_delayed"),
            )
        except psycopg.errors.ProgramLimitExceeded as error:
            log.warning(
                "a partition is not made: %s; they stay there until they expire",
                error.diag.message_primary,
                extra=logs.fields("partition_failed"),
            )
            return True
        except psycopg.Error as error:
            if connection.closed or is_outage(error):
                raise
            log.error(
                "a partition can't be made, its jobs go to the default one meanwhile: %s",
                explain(error, self._dsn),
                extra=logs.fields("partition_failed"),
            )
        else:
            if made:
                log.info("made the partitions of %s", ", ".join(map(str, made)), extra=logs.fields("partitions_made"))
            return True
        return False

    def _look_at_default(self, connection: Connection[Any]) -> None:
        jobs = count_default_jobs(connection)
        if jobs:
            log.warning(
                "%s jobs are in the default partition: their day had none when they were enqueued. Keep a pool running:"
                " it makes partitions two days ahead",
                f"{jobs - 1} or more" if jobs > 10_000 else jobs,
                extra=logs.fields("default_partition_used", jobs=min(jobs, 10_000)),
            )

    def _is_clock_right(self, connection: Connection[Any]) -> bool:
        """By the clock of a server that is set years ahead all history has expired, and what is dropped is gone."""
        ahead = (read_clock(connection) - datetime.now(timezone.utc)).total_seconds()
        if ahead < _SECONDS_AHEAD:
            return True
        log.error(
            "the clock of the server is %s ahead of this host's: nothing is dropped until the two agree",
            timedelta(seconds=round(ahead)),
            extra=logs.fields("partition_failed"),
        )
        return False

    def _prune(self, connection: Connection[Any]) -> bool:
        try:
            pruned = prune(connection, self._retention)
        except psycopg.Error as error:
            if connection.closed or is_outage(error):
                raise
            log.error(
                "expired partitions can't be dropped: %s",
                explain(error, self._dsn),
                extra=logs.fields("partition_failed"),
            )
            return False
        busy = [partition for partition in pruned if partition.action is PruneAction.BUSY]
        if busy:
            names = ", ".join(partition.name for partition in busy)
            log.warning(
                "%s can't be dropped yet: %s; trying again in a minute",
                names,
                busy[0].why,
                extra=logs.fields("partition_delayed"),
            )
            return False
        for partition in pruned:
            _log_pruned(partition)
        return True


def _log_pruned(partition: PrunedPartition) -> None:
    log.info(
        "dropped %s: %d jobs, %d executions, %.1f MiB; %d jobs are kept",
        partition.name,
        partition.jobs,
        partition.executions,
        partition.bytes / 2**20,
        partition.kept,
        extra=logs.fields("partition_dropped", jobs=partition.jobs),
    )
