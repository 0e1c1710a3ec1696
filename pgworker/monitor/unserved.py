"""Jobs that wait for nobody: their task is served by no living worker of any pool. Counted, and said in the log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.config.settings import PoolSettings
from pgworker.inspection.queues import Unserved, find_unserved
from pgworker.observe.logs import fields, logger
from pgworker.observe.metrics import PoolMetrics

_INTERVAL = 15.0
_COST_SHARE = 20  # a look may cost one part in so many of the time
_PATIENCE = 1.0  # seconds: leases are renewed on the same connection
_SAID_EVERY = 60.0
_TASKS = 20  # how many are told of: names come from whoever enqueues

log = logger("monitor.unserved")


class UnservedJobs:
    """The looks of one pool at its own queues; the first one after two beats, in which its workers show their tasks."""

    def __init__(self, settings: PoolSettings, metrics: PoolMetrics) -> None:
        self._queues = settings.queues
        self._metrics = metrics
        self._next_look = time.monotonic() + 2 * settings.heartbeat_interval
        self._said: dict[tuple[str, str], float] = {}

    def look(self, connection: Connection[Any], now: float) -> None:
        """Count, when it is time to."""
        if now < self._next_look:
            return
        begun = time.monotonic()
        try:
            self._tell(find_unserved(connection, self._queues, patience=_PATIENCE), now)
        except psycopg.errors.QueryCanceled:
            log.debug(
                "the head of a queue is slow to read: jobs that nobody serves are counted again later",
                extra=fields("unserved_unknown"),
            )
        self._next_look = now + max(_INTERVAL, _COST_SHARE * (time.monotonic() - begun))

    def _tell(self, unserved: Sequence[Unserved], now: float) -> None:
        self._metrics.set_unserved(
            {queue: sum(one.jobs.number for one in unserved if one.queue == queue) for queue in self._queues}
        )
        told = {(one.queue, one.task): one for one in unserved[:_TASKS]}
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
