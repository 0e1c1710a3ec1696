"""The monitor: everything that talks for the pool. It may use threads, since it never forks.

It renews leases, records deaths and reclaims, wakes workers, keeps partitions, and serves the pages. It outlives the
master: when the control channel closes it sees the workers end, reclaims with the board, and exits.
"""

from __future__ import annotations

import selectors
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from threading import Thread
from typing import Any
from uuid import UUID

import psycopg
import setproctitle
from psycopg import Connection

from pgworker.config.settings import PoolSettings
from pgworker.db.connect import connect_to_schema, explain
from pgworker.db.patience import Patience, PatientConnection
from pgworker.errors import PgworkerError
from pgworker.inspection.database import read_clock
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.floors import LaneFloors
from pgworker.lifecycle.heartbeat import PoolIdentity, WorkerProcess, beat_workers
from pgworker.lifecycle.reclaim import Reclaimed
from pgworker.lifecycle.release import release_jobs
from pgworker.lifecycle.transaction import limit_session
from pgworker.linux import process, stacks
from pgworker.linux.control import ControlChannel, Death, Shared
from pgworker.linux.pidfd import kill_group
from pgworker.linux.row import BoardRow
from pgworker.model.names import host_name
from pgworker.model.state import Outcome
from pgworker.monitor.activity import Activities
from pgworker.monitor.bearer import Bearer
from pgworker.monitor.clock import DatabaseClock
from pgworker.monitor.http import Pages
from pgworker.monitor.neighbours import end_the_gone
from pgworker.monitor.partitions import Partitions
from pgworker.monitor.reclaims import Reclaims
from pgworker.monitor.renewals import Renewals, draw_lines
from pgworker.monitor.samples import Samples
from pgworker.monitor.slow_line import SlowLine
from pgworker.monitor.steadiness import Steadiness
from pgworker.monitor.vitals import Vitals
from pgworker.monitor.wakeups import Wakeups
from pgworker.observe import logs
from pgworker.observe.events import receive
from pgworker.observe.metrics import PoolMetrics

_TICK = 0.1  # seconds: how soon a cancel mark or a due renewal is noticed
_IDLE_TICK = 0.25  # seconds while no worker holds a lease: nothing to renew or to cancel, and the rest may wait so long
_LOOK = 1.5  # seconds between two looks for leases at most: so much longer than its TTL may a lost host hold its jobs
_URGENT = 0.5  # the same while somebody has just died
_IN_DOUBT = 0.5  # seconds to the next beat while the other connection is lost
_PATIENCE = 20.0  # seconds for one answer at most: renewals wait behind it, and who is still for 30 s is replaced
_HELD_UP_NS = 1_000_000_000  # a clerk hands back after a quarter of it; what is still there then, its clerk can't
_LAST_CLAIMS = 1.5  # seconds during which a claim of a worker that was just killed may still commit
_SWITCH_INTERVAL = 0.001  # seconds: how soon a round gets the GIL from a scrape, which may take it for 50 ms
_SILENT_BEATS = 2  # beats that a worker of another pool has missed when we look whether its process is gone
_ORPHAN_PATIENCE = 4.0  # seconds to see the workers of a dead master end and to reclaim what they held

log = logs.logger("monitor")


def run_monitor(
    dsn: str, settings: PoolSettings, shared: Shared, control: ControlChannel, pool_id: UUID, version: str
) -> int:
    """Look after the pool until told to stop; returns the exit code. Runs in a forked child, on its main thread."""
    logs.set_process("monitor")
    setproctitle.setproctitle("pgworker: monitor")
    sys.setswitchinterval(_SWITCH_INTERVAL)
    stacks.install(shared.monitor_stack.fileno())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the master says when: workers may still drain
    monitor = Monitor(dsn, settings, shared, control, pool_id, version)
    return monitor.run()


class Monitor:
    """One round per tick; the database's part of it waits while the database is away."""

    def __init__(
        self, dsn: str, settings: PoolSettings, shared: Shared, control: ControlChannel, pool_id: UUID, version: str
    ) -> None:
        self._dsn = dsn
        self._settings = settings
        self._shared = shared
        self._board = shared.board
        self._control = control
        self._floors = LaneFloors(shared.board.floors, Lanes.of(settings.queues))
        self._activities = Activities(shared.board)
        self._vitals = Vitals(shared.board, self._activities)
        self._metrics = PoolMetrics(version, self._vitals.state)
        self._pool = PoolIdentity(pool_id, host_name(), process.pid_space(), settings.queues)
        self._renewals = Renewals(self._board, settings, self._metrics)
        self._silence = _SILENT_BEATS * settings.heartbeat_interval
        self._reclaims = Reclaims(self._board, self._pool, settings.lease_ttl, self._silence, self._metrics)
        self._patience = Patience(settings.lease_ttl, longest=min(_PATIENCE, settings.lease_ttl / 3))
        self._wakeups = self._new_wakeups()
        self._connection: PatientConnection[Any] | None = None
        self._next_connect = 0.0
        self._was_away = False
        self._hears_since = time.monotonic()
        self._next_beat = 0.0
        self._renewed_at = 0.0
        self._beaten: set[tuple[UUID, int]] = set()
        self._unanswered: set[UUID] = set()
        self._ask_now: set[UUID] = set()
        """Leases to be renewed though not due: a job of theirs may have been cancelled, or their time is over."""
        self._last_look = 0.0
        self._look_every = min(_LOOK, settings.heartbeat_interval)
        self._idle_tick = min(_IDLE_TICK, settings.heartbeat_interval / 3)
        self._asked_at = 0.0
        self._steadiness = Steadiness(settings.heartbeat_interval, settings.lease_ttl)
        self._clock = DatabaseClock()
        self._line = SlowLine(settings.lease_ttl)
        self._is_stopping = False
        self._orphaned_at: float | None = None

    def _new_wakeups(self) -> Wakeups:
        return Wakeups(
            self._dsn,
            self._settings.queues,
            self._board,
            [write for _, write in self._shared.wakes],
            listens=not self._settings.pooler,
            patience=self._patience.seconds,
            between=self._renew_meanwhile,
        )

    def run(self) -> int:
        if self._shared.listening is not None:
            bearer = Bearer(self._settings.metrics_token_file)
            vitals = self._vitals
            pages = Pages(self._shared.listening, self._metrics.registry, bearer, vitals.is_healthy, vitals.is_ready)
            pages.serve_in_thread()
        Thread(target=self._hear_workers, name="events", daemon=True).start()
        self._activities.look_in_thread()
        partitions = Partitions(self._dsn, self._settings.retention)
        partitions.keep_in_thread()
        Samples(self._dsn, self._settings, self._metrics).keep_in_thread(after=partitions.tried)
        while not self._is_over():
            self._wait()
            if self._connection is not None:
                self._ask_now.update(self._wakeups.read())  # first of all: it wakes workers
            self._hear()
            self._board.monitor_beat_ns = time.monotonic_ns()
            self._renewals.pass_on_cancels()
            self._talk()
        self._wakeups.close()
        if self._connection is not None:
            self._connection.close()
        return 0

    # -- one round

    def _wait(self) -> None:
        with selectors.PollSelector() as selector:  # unlike epoll it takes no descriptor: there may be none left
            if not self._control.is_closed:
                selector.register(self._control, selectors.EVENT_READ)
            # Nobody reads it while the database is away: its end, which it tells of for ever, would keep us busy.
            if self._connection is not None and self._wakeups.listener is not None:
                selector.register(self._wakeups.listener, selectors.EVENT_READ)
            selector.select(_TICK if self._renewals.is_any_held else self._idle_tick)

    def _hear_workers(self) -> None:
        """In a thread of its own: their socket must not fill up while a statement takes its time."""
        for report in receive(self._shared.events_in):
            self._metrics.absorb(report)

    def _hear(self) -> None:
        if not self._control.is_closed:
            for message in self._control.receive():
                kind = message.pop("kind")
                if kind == "death":
                    self._reclaims.note(Death(**message))
                elif kind == "stop":
                    self._is_stopping = True
        if self._control.is_closed:
            self._see_orphans_end()

    def _talk(self) -> None:
        """What needs the database. On a slow line a tick takes longer than a short lease may wait for its renewal, so
        renewals come first, and again between one statement and the next."""
        now = time.monotonic()
        try:
            connection = self._connected(now)
            if connection is None:
                return
            self._renew()
            if self._ask_now:
                self._ask_now = self._renewals.renew_these(connection, self._ask_now)
            self._record_deaths(connection)
            self._renew()
            if now >= self._next_beat or self._beaten != self._shown_rows():
                self._beat(connection)
            self._renew()
            if now - self._last_look >= (_URGENT if self._reclaims.is_urgent else self._look_every):
                self._look_for_leases(connection)
            self._renew()
            draw_lines(
                self._board, time.monotonic_ns(), _HELD_UP_NS, partial(self._release, connection), self._unanswered
            )
            self._patience.answered(connection)
            self._see_it_back()
        except (psycopg.Error, OSError, PgworkerError) as error:
            self._lose_connection(error)
            return
        if self._wakeups.tick(now):
            self._ask_now |= self._renewals.all_held()  # what was cancelled while nobody listened
        if self._wakeups.is_deaf:  # what ended that connection may have ended ours: find out soon
            self._next_beat = min(self._next_beat, now + _IN_DOUBT)

    def _renew(self) -> None:
        """What is due, once per tick of time however often it is called. Who gets as far as here is not stuck."""
        self._board.monitor_beat_ns = time.monotonic_ns()
        if self._connection is not None and time.monotonic() - self._renewed_at >= _TICK:
            began = time.monotonic()
            self._renewals.renew_due(self._connection, time.monotonic_ns())
            self._renewed_at = self._note_statement(began)

    def _renew_meanwhile(self) -> None:
        """`_renew`, while something else than this connection is talked to."""
        try:
            self._renew()
        except (psycopg.Error, OSError, PgworkerError) as error:
            self._lose_connection(error)

    def _beat(self, connection: Connection[Any]) -> None:
        now_ns = time.monotonic_ns()
        living = self._living()
        shown = self._shown_rows()
        workers = [
            WorkerProcess(
                row.worker_id,
                row.pid,
                row.index,
                (now_ns - row.forked_ns) // 1000,
                row.tasks_hash,
                self._activities.of(row, now_ns),
            )
            for row in living
        ]
        if workers:
            beat_workers(connection, self._pool, workers)
            self._renew()
        self._beaten = shown
        is_clock_set = self._look_at_clock(connection)
        done = time.monotonic()
        self._steadiness.note_beat(done, is_clock_set=is_clock_set)
        if is_clock_set:
            self._hears_since = done
        self._next_beat = done + self._settings.heartbeat_interval

    def _look_at_clock(self, connection: Connection[Any]) -> bool:
        """Whether the database's clock was set since our last beat."""
        sent = time.monotonic()
        shown, answered = read_clock(connection), time.monotonic()
        self._line.note_trip(answered - sent)
        by = self._clock.see(shown, sent, answered)
        if by:
            log.warning(
                "the database's clock was set %s by %.0f s: leases of others are left alone for --lease-ttl. Jobs go"
                " by that clock%s",
                "forward" if by > 0 else "back",
                abs(by),
                "" if by > 0 else ": what was due waits for its time again, see pgworker jobs retry --help",
                extra=logs.fields("clock_set"),
            )
        if by < 0.0:  # the floors are where that clock has been: what is enqueued from now on lies below them
            self._floors.lower_all()
        if by > 0.0:  # or ours stood still, with a host that was suspended: whose leases have run out meanwhile?
            self._ask_now |= self._renewals.all_held()
        return by != 0.0

    def _shown_rows(self) -> set[tuple[UUID, int]]:
        return {_shown(row) for row in self._board.rows if row.pid}

    def _living(self) -> list[BoardRow]:
        return [row for row in self._board.rows if row.pid and process.state(row.pid) not in (None, "Z")]

    def _record_deaths(self, connection: Connection[Any]) -> None:
        recorded = self._reclaims.record_deaths(connection)
        if recorded:
            self._look_for_leases(connection)
        for worker_id in recorded:
            self._control.send("ack", worker_id=worker_id)

    def _look_for_leases(self, connection: Connection[Any]) -> None:
        self._last_look = self._asked_at = time.monotonic()
        others_until = None
        if self._last_look - self._hears_since > self._silence:  # since then each had the time to speak for its own
            end_the_gone(connection, self._pool, self._silence)
            self._renew()
            others_until = self._clock.latest(time.monotonic())
        requeued = self._reclaims.reclaim(connection, self._may_take_expired, others_until)
        self._steadiness.note_look(self._note_statement(self._asked_at))
        self._make_findable(requeued)

    def _may_take_expired(self) -> datetime | None:
        """Others' leases go by expiry only while we are steady. Until when, by the database's clock, that is true if
        nobody sets it; None: not now."""
        self._renew()
        self._asked_at = now = self._note_statement(self._asked_at)
        return self._clock.latest(now) if self._steadiness.is_steady(now) else None

    def _note_statement(self, sent: float) -> float:
        """It is answered. The moment."""
        now = time.monotonic()
        self._steadiness.note_statement(sent, now)
        return now

    def _make_findable(self, requeued: Sequence[Reclaimed]) -> None:
        for job in requeued:
            self._floors.lower_to_reclaimed(job)
        self._wakeups.wake(len(requeued))

    def _release(self, connection: Connection[Any], lease_id: UUID, first: int) -> bool:
        answer = release_jobs(connection, lease_id, first)
        self._floors.lower_to(answer.lanes)
        for back in answer.lanes:
            self._wakeups.wake(back.jobs)
        return not answer.is_busy

    # -- the connection

    def _connected(self, now: float) -> PatientConnection[Any] | None:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if now < self._next_connect:
            return None
        self._next_connect = now + 0.5
        prepare = None if self._settings.pooler else 2
        connection = connect_to_schema(
            self._dsn,
            application_name="pgworker monitor",
            prepare_threshold=prepare,
            patience=self._patience.seconds,
            accepts_newer=True,
        )
        self._connection = connection
        limit_session(connection, self._patience.seconds)
        if self._was_away:
            self._hears_since = now
        return connection

    def _see_it_back(self) -> None:
        """Not before it has taken a beat, which is due at once: a standby lets us connect and takes nothing."""
        self._board.is_connected = True
        if self._was_away:
            self._was_away = False
            log.info("the database is back", extra=logs.fields("database_back"))

    def _lose_connection(self, error: psycopg.Error | OSError | PgworkerError) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._patience.after(error)
        self._board.is_connected = False
        self._was_away = True
        self._steadiness.note_loss()
        self._next_beat = 0.0
        if self._board.take_outage_line(time.monotonic_ns()):
            said = explain(error, self._dsn)
            log.warning("%s Running jobs go on while their leases last.", said, extra=logs.fields("database_away"))

    # -- the end

    def _is_over(self) -> bool:
        if self._is_stopping:
            return True
        if self._orphaned_at is None:
            return False
        alone_for = time.monotonic() - self._orphaned_at
        nothing_left = not any(row.pid for row in self._board.rows) and not self._reclaims.is_waiting
        return (nothing_left and alone_for > _LAST_CLAIMS) or alone_for > _ORPHAN_PATIENCE

    def _see_orphans_end(self) -> None:
        """The master is dead, and the kernel kills its workers: record each as soon as it is gone."""
        if self._orphaned_at is None:
            self._orphaned_at = time.monotonic()
            log.error(
                "the master is gone: its workers end, their jobs go back, and the monitor ends after them."
                " Start the pool again",
                extra=logs.fields("master_gone"),
            )
        for row in self._board.rows:
            if not row.pid:
                continue
            kill_group(row.pid, signal.SIGKILL)
            if process.state(row.pid) in (None, "Z"):
                lost = Outcome.LOST.value
                how = "killed together with the master"
                death = Death(row.index, row.pid, str(row.worker_id), how, lost, [lost] * row.slots, "")
                self._reclaims.note(death)
                row.pid = 0


def _shown(row: BoardRow) -> tuple[UUID, int]:
    """What a beat tells of a worker that is news."""
    return row.worker_id, row.tasks_hash
