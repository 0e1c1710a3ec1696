"""The clerk: a worker's one thread that talks to the database. Claims ahead, settles in groups, hands back.

One trip of its queue does it all: what has finished is settled and what is wanted next is claimed in one transaction
and one round trip. While handlers run, the clerk sleeps in `poll` on its wake-up pipe.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from pgworker.app.queue.leases import ClaimedJob
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.app.task import Task
from pgworker.config.settings import PoolSettings
from pgworker.db.connect import explain, is_outage
from pgworker.errors import PgworkerError, SchemaError
from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow
from pgworker.model.state import Outcome
from pgworker.observe.events import Reporter
from pgworker.observe.logs import fields, logger
from pgworker.worker.alarm import ASLEEP, AWAKE, GROUPING, Alarm
from pgworker.worker.crash import A_BUG, crash
from pgworker.worker.execution import take_progress
from pgworker.worker.link import Link
from pgworker.worker.prefetch import Prefetch
from pgworker.worker.recycle import Recycling
from pgworker.worker.runner import Runner
from pgworker.worker.sweep import Sweeper

RUSH_LOOK = 0.005
"""Seconds between two looks for jobs of all idle workers of a pool, on average, while enqueuers tell nobody of them."""

SETTLE_INTERVAL = 0.005
"""Seconds that finished jobs wait for company before they are settled, unless a claim goes the same way."""

PROGRESS_INTERVAL = 1.0
"""Seconds that what a job says of itself waits to be stored, unless a trip goes the same way."""

HOLD_UP = 0.25
"""Seconds a running job may hold up the jobs claimed behind it before they go back to the queue."""

BESIDE_TRIAL = 0.05
"""Seconds they wait for the end of a trial, during which nothing starts; many a suspect has ended by then."""

PAUSED_LOOK = 1.0
"""Seconds between two looks of an idle worker whether its pool is still paused."""

DRAINING_LOOK = 0.05
"""The same, of one that drains, whether what it holds has gone back."""

MONITOR_HELD_UP = 1.5
"""Seconds since the last beat of a monitor from which on nobody trusts it to tell of new jobs."""

NO_DESCRIPTORS = 5.0
"""Seconds that a worker without a free file descriptor waits for its running jobs to end before it ends with them."""

_SOONEST_LOOK = 0.9  # of --poll-interval

log = logger("worker.clerk")


class Clerk:
    """Runs `work` in a thread of its own until the worker has drained."""

    def __init__(
        self,
        *,
        settings: PoolSettings,
        board: Board,
        row: BoardRow,
        tasks: Mapping[str, Task[..., Any]],
        runner: Runner,
        link: Link,
        alarm: Alarm,
        reporter: Reporter,
        recycling: Recycling,
    ) -> None:
        self._settings = settings
        self._board = board
        self._row = row
        self._runner = runner
        self._link = link
        self._alarm = alarm
        self._reporter = reporter
        self._recycling = recycling
        lanes = Lanes.of(settings.queues)
        self._queue = PostgresQueue(
            link.connection,
            row=row,
            floors=board.floors,
            lanes=lanes,
            tasks=tasks,
            lease_ttl=settings.lease_ttl,
            may_pass_others=lambda: board.serves_one_app,
            on_lost=lambda row, outcome: reporter.lose(row.queue, row.task, outcome),
            on_lease_lost=reporter.lose_lease,
        )
        self._tasks = list(tasks)
        self._sweeper = Sweeper(board, self._tasks, lanes)
        self._prefetch = Prefetch(settings.prefetch_seconds, settings.max_batch, settings.slots)
        self._without_descriptors_since = self._settled_at = 0.0
        self._dry_until = 0.0  # there was nothing to claim: unless somebody tells us, we don't look again before
        self._put_ns = 0  # when the runner was last given jobs
        self._free_seen = 0  # slots, when it was last decided what to claim
        self._looks_for_all = False  # it is our turn to look for new jobs, for all that sleep
        self._begins_anew = False  # the last trip failed
        self.failure: PgworkerError | None = None
        """Why the clerk gave up; None: it has not."""

    def work(self) -> None:
        """Claim and settle until the worker drains and nothing is left; the runner is stopped on the way out."""
        try:
            while not self._is_done():
                self._recycling.look()
                self._sleep(self._go_round(), ASLEEP)
        except SchemaError as error:
            self.failure = error
            log.error("%s", error, extra=fields("worker_refused"))
            self._row.ask_drain()
        except MemoryError:  # a handler holds all that the worker may have
            crash(
                log,
                "no memory is left to record what jobs did; the worker ends and is replaced. Look at what its last jobs"
                " held, or raise --memory-limit",
            )
        except Exception:  # noqa: BLE001  a bug must end this worker, not leave it running without its clerk
            crash(log, f"what talks to the database failed: {A_BUG}", with_traceback=True)
        finally:
            self._runner.take_back()  # nobody would settle it; it goes back with its lease
            self._runner.stop()
            self._link.close()

    # -- one round

    def _go_round(self) -> float:
        """Do what there is to do; returns the seconds to sleep unless woken."""
        self._collect()
        self._runner.end_trial()
        try:
            self._link.open()
            self._give_back()
            wanted = self._plan_claim()
            if not wanted and self._queue.has_results and not self._is_settle_due():
                self._sleep(SETTLE_INTERVAL, GROUPING)
                return 0.0
            if wanted or self._queue.has_results or self._is_progress_due():
                self._trip(wanted)
                if self._sweeper.sweep(self._link.connection()):
                    self._dry_until = 0.0
                    self._board.tell_of_more()
        except SchemaError:
            raise
        except (psycopg.Error, OSError, PgworkerError) as error:
            self._after_error(error)
            return 0.0
        return self._seconds_to_sleep()

    def _collect(self) -> None:
        """What has ended goes to the queue's books, to be settled by the next trip."""
        finished, queue = self._runner.finished, self._queue
        jobs, failed, seconds = 0, 0, 0.0
        tells = log.isEnabledFor(logging.DEBUG)
        count = self._reporter.count
        while finished:
            execution, ended = finished.popleft()
            claimed, outcome = execution.claimed, ended.outcome
            if execution.is_settled:
                queue.succeeded_itself(claimed)
                outcome = Outcome.SUCCEEDED
            elif execution.is_lost:
                queue.lost(claimed)
                outcome = Outcome.LOST
            elif outcome is Outcome.SUCCEEDED:
                queue.succeed(claimed, ended)
            else:
                queue.fail(claimed, ended)
            row, started_ns = claimed.row, execution.started_ns
            took = (ended.finished_ns - started_ns) / 1e9
            # Until its claim began by the database's clock, from then on by ours: how the two differ is no matter.
            waited = row.waited + (started_ns - claimed.lease.claimed_ns) / 1e9
            count(row.queue, row.task, outcome, took, waited if waited > 0.0 else 0.0)
            jobs += 1
            seconds += took
            if outcome is not Outcome.SUCCEEDED:
                failed += 1
            elif tells:
                _log_success(claimed, took)
        if jobs:
            self._prefetch.observe(jobs, seconds)
        if failed:
            self._row.runs_failed += failed
        if self._runner.progress:  # looked at after what has ended: whatever those jobs said is there by now
            for said in take_progress(self._runner.progress):
                self._queue.progress(*said)

    def _trip(self, wanted: int) -> None:
        """Settle what has ended and claim what is wanted."""
        # To sleep after an empty claim is safe only if enqueuers could see that we are idle before it was sent.
        was_idle = self._row.is_idle
        jobs = self._queue.claim(wanted)
        self._settled_at = time.monotonic()
        self._begins_anew = False
        self._link.has_answered()
        self._reporter.send()
        if wanted:
            has_room = self._runner.free > len(self._runner.todo) + len(jobs)
            is_dry = len(jobs) < wanted and (was_idle or not has_room)
            self._dry_until = self._settled_at + self._draw_next_look() if is_dry else 0.0
            self._row.is_idle = has_room
        if jobs:
            if self._looks_for_all:
                self._board.tell_of_more()
            if log.isEnabledFor(logging.DEBUG):
                _log_claims(jobs)
            self._prefetch.weigh(len(jobs), sum(len(job.row.payload or "") for job in jobs))
            self._put_ns = time.monotonic_ns()
            self._runner.put(jobs)

    def _draw_next_look(self) -> float:
        """Seconds until the next look after one that found nothing. As a rule the monitor wakes us before; in a rush of
        new jobs nobody does, and all workers were woken at one moment, so each draws its own."""
        pause = self._settings.poll_interval
        if time.monotonic_ns() < self._board.rush_until_ns:
            return min(pause, RUSH_LOOK * max(1, self._board.workers_wanted) * random.uniform(0, 2))
        return pause * random.uniform(_SOONEST_LOOK, 2 - _SOONEST_LOOK)

    def _is_settle_due(self) -> bool:
        return time.monotonic() - self._settled_at >= SETTLE_INTERVAL or self._runner.is_idle

    def _is_progress_due(self) -> bool:
        return self._queue.has_progress and time.monotonic() - self._settled_at >= PROGRESS_INTERVAL

    def _plan_claim(self) -> int:
        waiting, self._free_seen = len(self._runner.todo), self._runner.free
        has_room = self._free_seen > waiting
        if self._claims_nothing or self._runner.trial_left or not self._queue.may_claim:
            self._row.is_idle = False  # it need not be woken for new jobs
            return 0
        if not has_room:
            self._row.is_idle = False
        if self._begins_anew and self._queue.has_results:
            return 0  # whatever is wrong with a claim, what has ended is recorded without it
        if time.monotonic() < self._dry_until and (self._row.is_idle or not has_room):
            return 0  # while we are shown idle they tell us of new jobs
        if self._leaves_look_to_others():
            self._dry_until = time.monotonic() + self._draw_next_look()
            return 0
        return self._prefetch.wanted(waiting, self._free_seen, self._since_last_start)

    def _leaves_look_to_others(self) -> bool:
        """Whether we sleep, were told of nothing, and somebody else of the pool looks at what is due by now."""
        now_ns = time.monotonic_ns()
        sleeps = self._row.is_idle and self._dry_until > 0.0 and self._is_told
        if not sleeps or now_ns < self._board.rush_until_ns:
            self._looks_for_all = False
            return False
        self._looks_for_all = self._board.take_look(now_ns, int(self._settings.poll_interval * _SOONEST_LOOK * 1e9))
        return not self._looks_for_all

    @property
    def _is_told(self) -> bool:
        """Whether the monitor listens for us, and is neither held up nor cut off."""
        is_late = time.monotonic_ns() - self._board.monitor_beat_ns > MONITOR_HELD_UP * 1e9
        return self._board.listens and self._board.is_connected and not is_late

    @property
    def _since_last_start(self) -> float:
        """Seconds since a job was last started."""
        return (time.monotonic_ns() - self._runner.started_ns) / 1e9

    @property
    def _stalled_for(self) -> float:
        """Seconds that what waits has not moved, for want of a slot or of a loop that takes it."""
        return (time.monotonic_ns() - max(self._runner.started_ns, self._put_ns)) / 1e9

    @property
    def _claims_nothing(self) -> bool:
        return self._row.is_draining or self._board.is_paused or not self._tasks

    def _seconds_to_sleep(self) -> float:
        if self._runner.todo or self._runner.finished:
            return self._until_held_up
        if (trial_left := self._runner.trial_left) > 0.0:
            return min(trial_left, HOLD_UP)
        if self._claims_nothing and self._runner.is_idle:
            return DRAINING_LOOK if self._row.is_draining else PAUSED_LOOK
        if self._claims_nothing or not self._runner.free:
            return HOLD_UP
        pause = self._dry_until - time.monotonic()
        return pause if self._runner.is_idle else min(pause, PROGRESS_INTERVAL)

    def _sleep(self, seconds: float, depth: int) -> None:
        self._alarm.set(depth)
        runner = self._runner
        if depth == ASLEEP and (runner.finished or runner.refused or runner.free > self._free_seen):
            seconds = 0.0  # it happened while we were awake, and nobody rings for that
        elif depth == ASLEEP and runner.todo:
            seconds = min(seconds, self._until_held_up)  # a trial may have begun
        if self._alarm.wait(seconds):  # not only the runner has rung: somebody tells of new jobs, or of a drain
            self._dry_until = 0.0

    def _is_done(self) -> bool:
        return (
            self._row.is_draining
            and self._runner.is_idle
            and not self._queue.leases
            and not self._runner.finished
            and not self._runner.refused
            and not self._queue.has_lost_claims
        )

    # -- handing back

    def _give_back(self) -> None:
        """Release what is not to run here: refused starts, a drain, jobs behind a long one, a claim without answer."""
        if self._claims_nothing or self._is_held_up() or self._runner.refused or self._queue.has_line:
            self._queue.keep_only_started(self._runner.take_back())
        self._queue.give_back()

    def _is_held_up(self) -> bool:
        return bool(self._runner.todo) and self._stalled_for > self._hold_up

    @property
    def _hold_up(self) -> float:
        return BESIDE_TRIAL if self._runner.trial_left else HOLD_UP

    @property
    def _until_held_up(self) -> float:
        return max(0.01, self._hold_up - self._stalled_for)

    # -- trouble

    def _after_error(self, error: psycopg.Error | OSError | PgworkerError) -> None:
        """Keep what is finished, drop the connection, say it once a second, wait a little. Then settle before anything
        is claimed, and claim little at first: it may have been too much."""
        self._begins_anew = True
        self._prefetch.begin_anew()
        self._row.is_idle = False  # nobody need tell us of jobs that we can't claim
        pause = self._link.fail(error)
        self._leave_without_descriptors()
        if self._board.take_outage_line(time.monotonic_ns()):
            waiting = sum(len(lease.ready) for lease in self._queue.leases)
            level = log.warning if is_outage(error) else log.error
            said = explain(error, self._link.dsn)
            level("%s Trying again.", said, extra=fields("database_away", waiting=waiting))
        self._sleep(pause, AWAKE)

    def _leave_without_descriptors(self) -> None:
        """A handler may have left open all the files that a process may have: then nothing can be recorded here, and
        what we hold would be renewed for ever. Wait for what runs, so that nobody is charged for it, but not long."""
        try:
            os.close(os.dup(self._alarm.fileno()))
        except OSError:
            self._without_descriptors_since = self._without_descriptors_since or time.monotonic()
        else:
            self._without_descriptors_since = 0.0
            return
        self._queue.keep_only_started(self._runner.take_back())  # back they go, if what runs closes its files in time
        if self._runner.is_idle or time.monotonic() - self._without_descriptors_since > NO_DESCRIPTORS:
            crash(
                log,
                "no file descriptor is left to record what jobs did; the worker ends and is replaced. Look at what its"
                " last jobs left open, or raise the limit of open files",
            )


def _log_claims(jobs: Sequence[ClaimedJob]) -> None:
    for job in jobs:
        log.debug("claimed", extra=fields("job_claimed", **job.log_fields()))


def _log_success(job: ClaimedJob, seconds: float) -> None:
    told = fields("job_succeeded", **job.log_fields(), outcome=Outcome.SUCCEEDED.value, duration=round(seconds, 6))
    log.debug("succeeded", extra=told)
