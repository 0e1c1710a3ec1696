"""What an expression of PromQL may use: the metrics that pools serve, with their labels."""

from __future__ import annotations

from tests.deploy.promql import added_up, parse

_POOL = {
    "pgworker_jobs_finished_total": {"queue", "task", "outcome"},
    "pgworker_job_duration_seconds": {"queue", "task"},
    "pgworker_job_wait_seconds": {"queue", "task"},
    "pgworker_jobs_running": set(),
    "pgworker_slots": set(),
    "pgworker_workers": set(),
    "pgworker_workers_wanted": set(),
    "pgworker_leases_lost_total": set(),
    "pgworker_lease_last_renewal_timestamp_seconds": set(),
    "pgworker_executions_reclaimed_total": {"reason"},
    "pgworker_worker_exits_total": {"reason"},
    "pgworker_worker_uss_bytes": {"worker"},
    "pgworker_worker_cpu_seconds_total": {"worker"},
    "pgworker_worker_jobs_total": {"worker"},
    "pgworker_claiming_paused": set(),
    "pgworker_database_up": set(),
    "pgworker_events_dropped_total": set(),
    "pgworker_build_info": {"version"},
    "pgworker_start_timestamp_seconds": set(),
}
_DATABASE = {
    "pgworker_queue_jobs": {"queue", "state"},
    "pgworker_queue_oldest_job_age_seconds": {"queue"},
    "pgworker_queue_paused": {"queue"},
    "pgworker_jobs_unserved": {"queue"},
    "pgworker_dead_letters": set(),
    "pgworker_default_partition_jobs": set(),
    "pgworker_database_sample_timestamp_seconds": set(),
}
_PROMETHEUS: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
"""What Prometheus adds of its own."""

_TARGET = {"job", "instance"}
"""Labels that each sample has, from its target."""


def check(expression: str) -> None:
    """Every metric is one that pools serve, and has the labels that are asked of it."""
    for metric, labels in parse(expression).labels.items():
        served = _labels(metric)
        assert served is not None, f"no pool serves {metric}: {expression}"
        missing = labels - served - _TARGET
        assert not missing, f"{metric} has no {', '.join(sorted(missing))}: {expression}"


def _labels(metric: str) -> set[str] | None:
    every = {**_POOL, **_DATABASE, **_PROMETHEUS}
    base, _, part = metric.rpartition("_")
    if base.endswith("_seconds") and part in ("bucket", "sum", "count"):
        found = every.get(base)
        return None if found is None else found | ({"le"} if part == "bucket" else set())
    return every.get(metric)


def check_no_sum_over_pools(expression: str) -> None:
    """What is counted in the database is the same from every pool: between it and any sum stands a max."""
    added = {metric for metric in added_up(expression) if metric in _DATABASE}
    assert not added, f"{', '.join(sorted(added))} would be counted once per pool: {expression}"
