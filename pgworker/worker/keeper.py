"""What a monitor does for a pool, done for one job in the foreground: a thread that keeps its lease, and beats."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import Connection

from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.one_by_one import save_or_say
from pgworker.db.connect import connect_to_schema, explain, is_outage
from pgworker.db.patience import Patience, PatientConnection
from pgworker.errors import PgworkerError
from pgworker.lifecycle.heartbeat import (
    Activity,
    PoolIdentity,
    RunningJob,
    WorkerProcess,
    beat_workers,
    end_worker,
)
from pgworker.lifecycle.renew import renew_leases
from pgworker.linux import process
from pgworker.linux.memory import private_bytes
from pgworker.linux.row import BoardRow
from pgworker.model.names import host_name
from pgworker.model.progress import ProgressUpdate
from pgworker.model.state import CancelReason, WorkerState
from pgworker.observe.logs import fields, logger
from pgworker.worker.execution import ProgressUpdates

LEASE_TTL = 60.0
"""Seconds: as a pool's by default. Whatever holds the GIL, or stops the process, for longer may lose the job."""

_TICK = 1.0  # seconds: how soon a cancel is noticed, and progress stored
_BEAT = 5.0

log = logger("worker.keeper")


class LeaseKeeper:
    """A worker process of its own, as the database sees it, that serves no queue: its heartbeats and its one lease.

    `begin` before anything is claimed, or others would take the lease for that of a worker they never heard of.
    """

    def __init__(self, dsn: str, row: BoardRow, progress: ProgressUpdates) -> None:
        self._dsn = dsn
        self._row = row
        self._progress = progress
        self._pool = PoolIdentity(uuid4(), host_name(), process.pid_space(), ())
        self._connection: PatientConnection[Any] | None = None
        self._patience = Patience(LEASE_TTL, longest=LEASE_TTL / 3)
        self._claimed: ClaimedJob | None = None
        self._unstored: ProgressUpdate | None = None
        """What the job said and an outage has kept from being stored."""
        self._next_beat = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease keeper", daemon=True)
        self._was_away = False

    def begin(self) -> None:
        """Say that we live. PgworkerError if that can't be said."""
        try:
            self._talk()
        except (psycopg.Error, OSError) as error:
            raise explain(error, self._dsn) from error
        self._thread.start()

    def keep(self, claimed: ClaimedJob) -> None:
        """From now on its lease is renewed, and its run asked to stop when somebody cancels it."""
        self._claimed = claimed
        self._next_beat = 0.0

    def let_go(self) -> None:
        """Renew nothing any more: the lease is about to end. What the job said and is not stored yet goes with it."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(_BEAT)
        if self._claimed is not None and self._unstored is not None:
            self._claimed.lease.note_earlier_progress(self._claimed.position, self._unstored)
            self._unstored = None

    def end(self, how: str) -> None:
        """Say how we ended, if we have begun. What we still hold others may reclaim two beats later."""
        self.let_go()
        if self._thread.ident is not None:
            with suppress(psycopg.Error, OSError, PgworkerError):  # then our heartbeats stop, which says it too
                end_worker(self._connected(), self._pool, self._process(), how)
        self._disconnect()

    def _work(self) -> None:
        while not self._over.wait(_TICK):
            try:
                self._patience.answered(self._talk())
                self._was_away = False
            except (psycopg.Error, OSError, PgworkerError) as error:  # noqa: PERF203  outages pass
                self._disconnect()
                self._patience.after(error)
                if not is_outage(error):
                    log.exception(
                        "the lease can't be kept: what this job does may not be recorded", extra=fields("lease_lost")
                    )
                    return
                if not self._was_away:
                    said = explain(error, self._dsn)
                    log.warning(
                        "%s The job goes on; its lease lasts %g s from its last renewal.",
                        said,
                        LEASE_TTL,
                        extra=fields("database_away"),
                    )
                self._was_away = True

    def _talk(self) -> PatientConnection[Any]:
        """The renewal first: a lock on what else is written must not cost the lease."""
        connection = self._connected()
        claimed = self._claimed
        if claimed is not None and not self._row.is_lost(claimed.lease.entry):
            self._renew(connection, claimed)
            self._save_progress(connection, claimed)
        if time.monotonic() >= self._next_beat:
            beat_workers(connection, self._pool, [self._process()])
            self._next_beat = time.monotonic() + _BEAT
        return connection

    def _renew(self, connection: Connection[Any], claimed: ClaimedJob) -> None:
        lease_id = claimed.lease.lease_id
        renewal = renew_leases(connection, [lease_id], LEASE_TTL).get(lease_id)
        run = self._row.run(0)
        if run is None or self._over.is_set():
            return
        if renewal is None:
            self._row.lose(claimed.lease.entry)
            log.error(
                "the lease is lost, and with it the job: others have it by now, and nothing here is recorded",
                extra=fields("lease_lost", **claimed.log_fields()),
            )
        elif claimed.position in renewal.cancelled and self._row.cancel_reason(0, run.sequence) is CancelReason.NONE:
            self._row.ask_cancel(run, CancelReason.CANCELLED)
            log.warning(
                "somebody has cancelled the job: its handler sees it in ctx.cancelled",
                extra=fields("cancel_heard", **claimed.log_fields()),
            )

    def _save_progress(self, connection: Connection[Any], claimed: ClaimedJob) -> None:
        if (taken := self._progress.pop((claimed.lease.lease_id, claimed.position), None)) is not None:
            self._unstored = taken[1].after(self._unstored)
        if self._unstored is None:
            return
        if save_or_say(connection, claimed.lease, claimed.position, self._unstored):
            # So that it goes with the end of the job.
            claimed.lease.with_progress[claimed.position] = claimed.row.job_id
        self._unstored = None

    def _process(self) -> WorkerProcess:
        now_ns, claimed, run = time.monotonic_ns(), self._claimed, self._row.run(0)
        runs: tuple[RunningJob, ...] = ()
        if claimed is not None and run is not None:
            runs = (RunningJob(claimed.lease.lease_id, claimed.position, (now_ns - run.since_ns) // 1000),)
        times = os.times()
        activity = Activity(
            WorkerState.BUSY if runs else WorkerState.STARTING,
            runs,
            self._row.jobs_done,
            private_bytes(),
            times.user + times.system,
        )
        age_us = (now_ns - self._row.forked_ns) // 1000
        return WorkerProcess(self._row.worker_id, os.getpid(), 0, age_us, activity=activity)

    def _connected(self) -> PatientConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect_to_schema(
                self._dsn,
                application_name="pgworker jobs run keeper",
                prepare_threshold=None,
                patience=self._patience.seconds,
                accepts_newer=True,
            )
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
