"""Every metric there is: its name, what kind it is, its labels, and what it means to an operator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """As in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Scope(str, Enum):
    """Of what a metric tells: of one pool, or of the database, so that every pool on it says the same."""

    POOL = "pool"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. `name` is what queries call it; a histogram has `_bucket`, `_sum` and `_count` behind it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    scope: Scope = Scope.POOL

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def _counter(name: str, labels: str, text: str) -> Spec:
    return Spec(name, Kind.COUNTER, tuple(labels.split()), text)


def _gauge(name: str, labels: str, text: str) -> Spec:
    return Spec(name, Kind.GAUGE, tuple(labels.split()), text)


def _histogram(name: str, labels: str, text: str) -> Spec:
    return Spec(name, Kind.HISTOGRAM, tuple(labels.split()), text)


def _sampled(name: str, labels: str, text: str) -> Spec:
    return Spec(name, Kind.GAUGE, tuple(labels.split()), text, Scope.DATABASE)


CATALOGUE: tuple[Spec, ...] = (
    # what was done
    _counter(
        "pgworker_jobs_finished_total",
        "queue task outcome",
        "Executions that have ended: succeeded, failed, timed_out, cancelled, crashed, lost, released or snoozed."
        " What a worker could not record as its lease was gone is lost."
        " After 200 pairs of queue and task new ones count as other, other.",
    ),
    _histogram(
        "pgworker_job_duration_seconds", "queue task", "How long handlers ran, of executions that a worker ended."
    ),
    _histogram(
        "pgworker_job_wait_seconds",
        "queue task",
        "From the moment a job was due until its handler started, told when the handler has ended.",
    ),
    _counter(
        "pgworker_executions_reclaimed_total",
        "reason",
        "Jobs taken back from dead workers, by what the execution counts as; not_started: it had only been claimed.",
    ),
    _counter(
        "pgworker_leases_lost_total",
        "",
        "Leases that others had taken when they were to be renewed or settled: the database could not be reached, or"
        " the pool was stopped, for too long.",
    ),
    _counter(
        "pgworker_worker_exits_total",
        "reason",
        "Worker processes that have ended: drained as asked, else what their running job counts as.",
    ),
    _counter(
        "pgworker_events_dropped_total",
        "",
        "Executions missing in the counters and histograms here: the monitor was too slow to hear of them.",
    ),
    # the pool now
    _gauge("pgworker_workers", "", "Workers that are ready: those that claim jobs, and those that drain."),
    _gauge(
        "pgworker_workers_wanted", "", "Workers that there should be, by -w, TTIN and TTOU; 0 while the pool drains."
    ),
    _gauge("pgworker_slots", "", "Jobs that the ready workers can run at a time."),
    _gauge("pgworker_jobs_running", "", "Jobs whose handlers run now."),
    _gauge("pgworker_claiming_paused", "", "1 while USR2 keeps this pool from claiming."),
    _gauge("pgworker_database_up", "", "1 if the monitor of this pool reached the database when it last tried."),
    _gauge(
        "pgworker_lease_last_renewal_timestamp_seconds",
        "",
        "When the leases of this pool were last looked after. Jobs are stopped when that is nearly a lease ago.",
    ),
    _gauge(
        "pgworker_worker_uss_bytes",
        "worker",
        "Memory that a worker shares with no other process, by its place in the pool; looked at every 15 s.",
    ),
    _counter(
        "pgworker_worker_cpu_seconds_total",
        "worker",
        "CPU time of the processes that were in this place of the pool, looked at every 5 s.",
    ),
    _counter(
        "pgworker_worker_jobs_total", "worker", "Executions ended by the processes that were in this place of the pool."
    ),
    _gauge("pgworker_build_info", "version", "Always 1; the label tells the version."),
    _gauge(
        "pgworker_start_timestamp_seconds",
        "",
        "Since when the counters here count: since the start of the pool, or of its monitor if that was replaced.",
    ),
    # the database
    _sampled(
        "pgworker_queue_jobs",
        "queue state",
        "Jobs of a queue that are pending, scheduled for later, failed and waiting to run again, or claimed by a worker"
        " (running). Counting stops at 10000 due and 10000 later jobs of a queue, at 100 queues, and at 10000 claimed"
        " jobs of all queues together.",
    ),
    _sampled(
        "pgworker_queue_oldest_job_age_seconds",
        "queue",
        "For how long the first due job of a queue has waited; 0: none.",
    ),
    _sampled("pgworker_queue_paused", "queue", "1 while nobody may claim from this queue."),
    _sampled(
        "pgworker_jobs_unserved",
        "queue",
        "Due jobs of tasks that no living worker of any pool serves, as far as they stand at the head of the queue.",
    ),
    _sampled("pgworker_dead_letters", "", "Jobs that were given up and wait for a decision; counted up to 10000."),
    _sampled(
        "pgworker_default_partition_jobs",
        "",
        "Jobs whose day had no partition when they were enqueued; counted up to 10001. Keep a pool running.",
    ),
    _sampled(
        "pgworker_database_sample_timestamp_seconds",
        "",
        "When this pool last counted what the database holds: every 15 s. The counts are absent after three misses.",
    ),
)
