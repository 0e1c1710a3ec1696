"""The metrics of one pool: every name in one place, one registry, filled by the monitor alone."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pgworker.observe.events import BUCKETS, Report


@dataclass(frozen=True, slots=True)
class WorkerGauge:
    """What the board and the kernel say of one worker at scrape time."""

    worker: int
    is_ready: bool
    running: int
    uss_bytes: int
    cpu_seconds: float


@dataclass(slots=True)
class _Durations:
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))


class PoolMetrics(Collector):
    """Counts what is reported; looks at the board, through `gauges`, when it is scraped."""

    def __init__(
        self, version: str, gauges: Callable[[], list[WorkerGauge]], is_paused: Callable[[], bool] = lambda: False
    ) -> None:
        self._version = version
        self._gauges = gauges
        self._is_paused = is_paused
        self._finished: Counter[tuple[str, str, str]] = Counter()
        self._durations: defaultdict[tuple[str, str, str], _Durations] = defaultdict(_Durations)
        self._dropped = 0
        self._leases_lost = 0
        self._reclaimed: Counter[str] = Counter()
        self._exits: Counter[str] = Counter()
        self._unserved: dict[str, int] = {}
        self._default_jobs = 0
        self._last_renewal = time.time()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def absorb(self, report: Report) -> None:
        """Count what a worker reports."""
        self._dropped += report.dropped
        for group in report.groups:
            key = (group.queue, group.task, group.outcome)
            self._finished[key] += group.jobs
            durations = self._durations[key]
            durations.seconds += group.seconds
            durations.buckets = [have + more for have, more in zip(durations.buckets, group.buckets, strict=True)]

    def count_lost_lease(self) -> None:
        self._leases_lost += 1

    def count_reclaimed(self, reason: str) -> None:
        self._reclaimed[reason] += 1

    def count_exit(self, reason: str) -> None:
        self._exits[reason] += 1

    def set_unserved(self, jobs: Mapping[str, int]) -> None:
        """How many due jobs nobody serves, for each queue of the pool."""
        self._unserved = dict(jobs)

    def renewed(self) -> None:
        self._last_renewal = time.time()

    def note_default_jobs(self, jobs: int) -> None:
        self._default_jobs = jobs

    def collect(self) -> Iterator[Metric]:
        yield from self._work()
        yield from self._pool()

    def _work(self) -> Iterator[Metric]:
        labels = ["queue", "task", "outcome"]
        finished = CounterMetricFamily("pgworker_jobs_finished", "Executions that ended in a worker.", labels=labels)
        durations = HistogramMetricFamily("pgworker_job_duration_seconds", "How long handlers ran.", labels=labels)
        for key, jobs in list(self._finished.items()):
            finished.add_metric(list(key), jobs)
            taken = self._durations[key]
            durations.add_metric(list(key), _cumulative(taken.buckets), taken.seconds)
        yield finished
        yield durations
        unserved = GaugeMetricFamily(
            "pgworker_jobs_unserved", "Due jobs of tasks that no living worker of any pool serves.", labels=["queue"]
        )
        for queue, jobs in self._unserved.items():
            unserved.add_metric([queue], jobs)
        yield unserved
        yield _counter(
            "pgworker_events_dropped", "Reports of workers that found the monitor's socket full.", self._dropped
        )

    def _pool(self) -> Iterator[Metric]:
        gauges = self._gauges()
        yield GaugeMetricFamily("pgworker_workers", "Workers that are ready.", sum(gauge.is_ready for gauge in gauges))
        yield GaugeMetricFamily("pgworker_jobs_running", "Jobs that run now.", sum(gauge.running for gauge in gauges))
        yield GaugeMetricFamily(
            "pgworker_claiming_paused", "1 while USR2 keeps this pool from claiming.", int(self._is_paused())
        )
        memory = GaugeMetricFamily(
            "pgworker_worker_uss_bytes", "Memory of a worker that no other shares.", labels=["worker"]
        )
        cpu = CounterMetricFamily(
            "pgworker_worker_cpu_seconds", "CPU time of the process in this place.", labels=["worker"]
        )
        for gauge in gauges:
            memory.add_metric([str(gauge.worker)], gauge.uss_bytes)
            cpu.add_metric([str(gauge.worker)], gauge.cpu_seconds)
        yield memory
        yield cpu
        yield _counter("pgworker_leases_lost", "Leases that were gone when they were to be renewed.", self._leases_lost)
        yield GaugeMetricFamily(
            "pgworker_lease_last_renewal_timestamp_seconds", "When leases were last looked after.", self._last_renewal
        )
        reclaimed = CounterMetricFamily(
            "pgworker_executions_reclaimed", "Jobs taken back from the dead.", labels=["reason"]
        )
        for reason, count in list(self._reclaimed.items()):
            reclaimed.add_metric([reason], count)
        yield reclaimed
        exits = CounterMetricFamily("pgworker_worker_exits", "Worker processes that ended.", labels=["reason"])
        for reason, count in list(self._exits.items()):
            exits.add_metric([reason], count)
        yield exits
        yield GaugeMetricFamily(
            "pgworker_default_partition_jobs",
            "Jobs whose day had no partition, counted up to 10001; looked at once an hour.",
            self._default_jobs,
        )
        info = GaugeMetricFamily("pgworker_build_info", "Always 1; the label tells the version.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info


def _counter(name: str, help_text: str, value: int) -> Metric:
    return CounterMetricFamily(name, help_text, value)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total, cumulative = 0, []
    for bound, jobs in zip([*map(str, BUCKETS), "+Inf"], buckets, strict=True):
        total += jobs
        cumulative.append((bound, float(total)))
    return cumulative
