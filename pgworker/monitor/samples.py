"""What the database holds, counted every 15 s for /metrics: the same from every pool, all queues of the database.

In a thread, with a connection that is there for the moment of a look. Counting takes milliseconds as a rule, but 1.1 s
where a million dead rows stand at the heads of the queues and an old transaction keeps them there: renewals and
wake-ups must not wait for that. Jobs that nobody serves are told of in the log as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Event, Thread

import psycopg

from pgworker.config.settings import PoolSettings
from pgworker.db.connect import check_schema, connect, explain, is_outage
from pgworker.db.patience import ANSWER
from pgworker.errors import PgworkerError
from pgworker.inspection.queues import Count, QueueCounts, Unserved
from pgworker.inspection.sample import Sample, sample_database
from pgworker.observe.logs import Throttle, fields, logger
from pgworker.observe.metrics import DatabaseSample, PoolMetrics, QueueSample

_INTERVAL = 15.0
_COST_SHARE = 20  # a look may cost one part in so many of the time
_PATIENCE = 5.0  # seconds that a statement may take
_MISSES = 3  # looks that may fail before the gauges are absent
_SAID_EVERY = 60.0
_REMINDED_EVERY = 3600.0
STATES = ("pending", "scheduled", "failed", "running")
_NAMES = 20  # how many tasks, and how many queues, are told of: names come from whoever enqueues

log = logger("monitor.samples")


class Samples:
    """The looks of one pool. What nobody serves is known from two beats on: until then workers may not have shown their
    tasks."""

    def __init__(self, dsn: str, settings: PoolSettings, metrics: PoolMetrics) -> None:
        self._dsn = dsn
        self._queues = settings.queues
        self._metrics = metrics
        self._knows_tasks_at = time.monotonic() + 2 * settings.heartbeat_interval
        self._said: dict[tuple[str, str], float] = {}
        self._said_of_queues: dict[str, float] = {}
        self._throttle = Throttle(interval=_SAID_EVERY)
        self._reminder = Throttle(interval=_REMINDED_EVERY)

    def keep_in_thread(self, after: Event) -> None:
        """The first look comes `after` that, or soon. The thread ends with the process: it only reads."""
        Thread(target=self._keep, args=[after], name="samples", daemon=True).start()

    def _keep(self, after: Event) -> None:
        after.wait(_PATIENCE)
        while True:
            begun = time.monotonic()
            pause = self.look(begun)
            if begun < self._knows_tasks_at:
                pause = min(pause, max(0.0, self._knows_tasks_at - time.monotonic()))
            time.sleep(pause)

    def look(self, now: float) -> float:
        """Count once; returns the seconds to the next time."""
        begun, sampled_at = time.monotonic(), time.time()
        sample = self._sample()
        cost = time.monotonic() - begun
        pause = max(_INTERVAL, _COST_SHARE * cost)
        if sample is not None:
            knows_tasks = now >= self._knows_tasks_at
            queues = self._shown(sample.queues, knows_tasks=knows_tasks)
            shown = DatabaseSample(sampled_at, queues, sample.dead_letters, sample.default_jobs)
            self._metrics.set_sample(shown, _MISSES * pause + cost)
            if knows_tasks:
                unserved = [one for queue in sample.queues for one in queue.unserved]
                self._log_unserved(unserved, now)
                self._log_unserved_queues(unserved, now)
        return pause

    def _sample(self) -> Sample | None:
        try:
            with connect(
                self._dsn, application_name="pgworker monitor, counts", prepare_threshold=None, patience=ANSWER
            ) as connection:
                if not check_schema(connection, accepts_newer=True):
                    self._remind()
                return sample_database(connection, patience=_PATIENCE)
        except psycopg.errors.QueryCanceled:
            self._say(f"counting what waits takes longer than {_PATIENCE:g} s")
        except (psycopg.Error, OSError, PgworkerError) as error:
            if not is_outage(error):  # the monitor's other connection says that the database is away
                self._say(str(explain(error, self._dsn)))
        return None

    def _remind(self) -> None:
        if self._reminder.admit("newer schema") is not None:
            log.warning(
                "a newer pgworker has migrated the database, and this pool works on as before:"
                " restart it with that version soon",
                extra=fields("schema_newer"),
            )

    def _say(self, why: str) -> None:
        if (more := self._throttle.admit("counts")) is not None:
            log.warning(
                "what the database holds can't be counted, /metrics will not show it: %s%s",
                why,
                more,
                extra=fields("counts_missing"),
            )

    def _shown(self, found: Sequence[QueueCounts], *, knows_tasks: bool) -> list[QueueSample]:
        """Those of this pool are shown when nothing is in them, too."""
        names = {one.queue for one in found}
        empty = [
            QueueSample(queue, dict.fromkeys(STATES, 0), 0.0, is_paused=False, unserved=0 if knows_tasks else None)
            for queue in self._queues
            if queue not in names
        ]
        return [*(_shown(one, knows_tasks=knows_tasks) for one in found), *empty]

    def _log_unserved(self, unserved: Sequence[Unserved], now: float) -> None:
        """Of the queues of this pool: others tell of theirs."""
        ours = sorted((one for one in unserved if one.queue in self._queues), key=lambda one: -one.jobs.number)
        told = {(one.queue, one.task): one for one in ours[:_NAMES]}
        self._said = {key: at for key, at in self._said.items() if key in told and now - at < _SAID_EVERY}
        for key in told.keys() - self._said.keys():
            self._said[key] = now
            one = told[key]
            log.warning(
                "%d%s due jobs of task %s wait, and no worker serves it: is it deployed, is its name right?",
                one.jobs.number,
                " or more" if one.jobs.is_more else "",
                one.task,
                extra=fields("jobs_unserved", queue=one.queue, task=one.task, jobs=one.jobs.number),
            )

    def _log_unserved_queues(self, unserved: Sequence[Unserved], now: float) -> None:
        """Of queues that no pool serves: there every pool tells, and seldom."""
        waiting: dict[str, list[Count]] = {}
        for one in unserved:
            if not one.is_queue_served and one.queue not in self._queues:
                waiting.setdefault(one.queue, []).append(one.jobs)
        self._said_of_queues = {queue: at for queue, at in self._said_of_queues.items() if now - at < _REMINDED_EVERY}
        for queue, counts in waiting.items():
            if queue in self._said_of_queues or len(self._said_of_queues) == _NAMES:
                continue
            self._said_of_queues[queue] = now
            jobs = Count.total(counts)
            log.warning(
                "%d%s due jobs wait in queue %s, which no living worker serves: is its name right?",
                jobs.number,
                " or more" if jobs.is_more else "",
                queue,
                extra=fields("queue_unserved", queue=queue, jobs=jobs.number),
            )


def _shown(counts: QueueCounts, *, knows_tasks: bool) -> QueueSample:
    seen = (counts.waiting, counts.scheduled, counts.failed, counts.running)
    jobs = {state: count.number for state, count in zip(STATES, seen, strict=True)}
    unserved = counts.unserved_jobs.number if knows_tasks else None
    return QueueSample(counts.queue, jobs, max(0.0, counts.oldest or 0.0), counts.paused, unserved)
