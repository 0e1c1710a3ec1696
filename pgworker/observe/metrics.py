"""The metrics of one pool: every name in one place, one registry, filled by the monitor alone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pgworker.model.state import Outcome
from pgworker.observe.catalogue import CATALOGUE, Kind, Spec
from pgworker.observe.events import DURATION_BUCKETS, OUTCOMES, WAIT_BUCKETS, Report, Tally
from pgworker.observe.logs import fields, logger

__all__ = ["CATALOGUE", "DatabaseSample", "PoolMetrics", "PoolState", "QueueSample", "WorkerGauge"]

MAX_PAIRS = 200
"""How many pairs of queue and task have series of their own; what comes after them counts as `other`, `other`."""

OTHER = "other"

_EXITS = ("drained", "crashed", "timed_out", "cancelled", "lost", "released")
_RECLAIMED = ("not_started", "crashed", "timed_out", "cancelled", "lost", "released")

log = logger("observe.metrics")


@dataclass(frozen=True, slots=True)
class WorkerGauge:
    """What the board and the kernel say of a living worker now. No `uss_bytes`: not known yet."""

    worker: int
    is_ready: bool
    slots: int
    running: int
    uss_bytes: int | None


@dataclass(frozen=True, slots=True)
class PoolState:
    """The pool now. `cpu_seconds`: of all processes that were ever in each place."""

    workers: Sequence[WorkerGauge] = ()
    cpu_seconds: Mapping[int, float] = field(default_factory=dict)
    wanted: int = 0
    is_paused: bool = False
    is_connected: bool = False


@dataclass(frozen=True, slots=True)
class QueueSample:
    """One queue of the database: jobs by state, and seconds that its oldest due one waits.

    `unserved`: due jobs that nobody serves; None: not known yet.
    """

    queue: str
    jobs: Mapping[str, int]
    oldest: float
    is_paused: bool
    unserved: int | None


@dataclass(frozen=True, slots=True)
class DatabaseSample:
    """What a look at the database has found, and when that was, in seconds of the epoch."""

    at: float
    queues: Sequence[QueueSample]
    dead_letters: int
    default_jobs: int


class PoolMetrics(Collector):
    """Counts what it is told; looks at the pool, through `look`, when it is scraped. Any thread may call it."""

    def __init__(self, version: str, look: Callable[[], PoolState]) -> None:
        self._version = version
        self._look = look
        self._lock = threading.Lock()
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._jobs: Counter[int] = Counter()
        self._dropped = 0
        self._leases_lost = 0
        self._reclaimed = Counter(dict.fromkeys(_RECLAIMED, 0))
        self._exits = Counter(dict.fromkeys(_EXITS, 0))
        self._sample: tuple[DatabaseSample, float] | None = None
        self._sampled_at: float | None = None
        self._started = self._last_renewal = time.time()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    # -- what it is told

    def absorb(self, report: Report) -> None:
        """Count what a worker reports."""
        with self._lock:
            self._dropped += report.dropped
            self._leases_lost += report.leases_lost
            for queue, task, tally in report.records:
                self._tally(queue, task).add(tally)
                self._jobs[report.worker] += tally.executions

    def count_reclaimed(self, queue: str | None, task: str | None, outcome: Outcome | None) -> None:
        """A job was taken back from a dead worker. No `outcome`: it had not started."""
        with self._lock:
            self._reclaimed[outcome.value if outcome else "not_started"] += 1
            if outcome is not None:
                self._tally(queue or "unknown", task or "unknown").end(outcome)

    def count_exit(self, reason: str) -> None:
        with self._lock:
            self._exits[reason] += 1

    def count_lost_lease(self) -> None:
        with self._lock:
            self._leases_lost += 1

    def renewed(self) -> None:
        self._last_renewal = time.time()

    def set_sample(self, sample: DatabaseSample, valid_for: float) -> None:
        """What the database holds, to be shown for so many seconds unless there is news."""
        self._sample = sample, time.monotonic() + valid_for
        self._sampled_at = sample.at

    def _tally(self, queue: str, task: str) -> Tally:
        tally = self._tallies.get((queue, task))
        if tally is not None:
            return tally
        if len(self._tallies) == MAX_PAIRS:
            log.warning(
                "more than %d pairs of queue and task: from now on new ones are counted as %s, %s on /metrics",
                MAX_PAIRS,
                OTHER,
                OTHER,
                extra=fields("labels_folded"),
            )
        if len(self._tallies) >= MAX_PAIRS:
            queue = task = OTHER
        return self._tallies.setdefault((queue, task), Tally())

    # -- what it tells

    def collect(self) -> Iterator[Metric]:
        page = _Page()
        self._add_work(page)
        self._add_pool(page, self._look())
        self._add_database(page)
        yield from page.families.values()

    def _add_work(self, page: _Page) -> None:
        with self._lock:
            tallies = [(queue, task, Tally(list(one.numbers))) for (queue, task), one in self._tallies.items()]
            counted = {"pgworker_executions_reclaimed_total": dict(self._reclaimed)}
            counted["pgworker_worker_exits_total"] = dict(self._exits)
        for queue, task, tally in tallies:
            for outcome, executions in zip(OUTCOMES, tally.by_outcome, strict=True):
                page.add("pgworker_jobs_finished_total", executions, queue, task, outcome.value)
            page.add_histogram("pgworker_job_duration_seconds", DURATION_BUCKETS, *tally.durations, queue, task)
            page.add_histogram("pgworker_job_wait_seconds", WAIT_BUCKETS, *tally.waits, queue, task)
        for name, by_reason in counted.items():
            for reason, count in by_reason.items():
                page.add(name, count, reason)
        page.add("pgworker_events_dropped_total", self._dropped)
        page.add("pgworker_leases_lost_total", self._leases_lost)

    def _add_pool(self, page: _Page, pool: PoolState) -> None:
        ready = [worker for worker in pool.workers if worker.is_ready]
        page.add("pgworker_workers", len(ready))
        page.add("pgworker_workers_wanted", pool.wanted)
        page.add("pgworker_slots", sum(worker.slots for worker in ready))
        page.add("pgworker_jobs_running", sum(worker.running for worker in pool.workers))
        page.add("pgworker_claiming_paused", pool.is_paused)
        page.add("pgworker_database_up", pool.is_connected)
        page.add("pgworker_lease_last_renewal_timestamp_seconds", self._last_renewal)
        for worker in pool.workers:
            if worker.uss_bytes is not None:
                page.add("pgworker_worker_uss_bytes", worker.uss_bytes, str(worker.worker))
        for place, seconds in pool.cpu_seconds.items():
            page.add("pgworker_worker_cpu_seconds_total", seconds, str(place))
            page.add("pgworker_worker_jobs_total", self._jobs[place], str(place))
        page.add("pgworker_build_info", 1, self._version)
        page.add("pgworker_start_timestamp_seconds", self._started)

    def _add_database(self, page: _Page) -> None:
        if self._sampled_at is not None:
            page.add("pgworker_database_sample_timestamp_seconds", self._sampled_at)
        if self._sample is None or time.monotonic() > self._sample[1]:
            return
        sample = self._sample[0]
        page.add("pgworker_dead_letters", sample.dead_letters)
        page.add("pgworker_default_partition_jobs", sample.default_jobs)
        for one in sample.queues:
            for state, jobs in one.jobs.items():
                page.add("pgworker_queue_jobs", jobs, one.queue, state)
            page.add("pgworker_queue_oldest_job_age_seconds", one.oldest, one.queue)
            page.add("pgworker_queue_paused", one.is_paused, one.queue)
            if one.unserved is not None:
                page.add("pgworker_jobs_unserved", one.unserved, one.queue)


class _Page:
    """What one scrape is answered with: a family for each name of the catalogue, in its order."""

    def __init__(self) -> None:
        self.families = {spec.name: _family(spec) for spec in CATALOGUE}

    def add(self, name: str, value: float, *labels: str) -> None:
        family = self.families[name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily), name
        family.add_metric(labels, value)

    def add_histogram(
        self, name: str, bounds: Sequence[float], counts: Sequence[float], total: float, *labels: str
    ) -> None:
        """`counts` are of each bucket alone, the last one of all above the bounds."""
        family = self.families[name]
        assert isinstance(family, HistogramMetricFamily), name
        seen, buckets = 0.0, []
        for bound, count in zip([*map(str, bounds), "+Inf"], counts, strict=True):
            seen += count
            buckets.append((bound, seen))
        family.add_metric(labels, buckets, total)


_FAMILIES: dict[Kind, Callable[..., Metric]] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


def _family(spec: Spec) -> Metric:
    return _FAMILIES[spec.kind](spec.name.removesuffix("_total"), spec.help, labels=spec.labels)
