from __future__ import annotations

import socket

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgworker.observe.events import BUCKETS, Reporter, receive
from pgworker.observe.metrics import PoolMetrics


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def samples(metrics: PoolMetrics, name: str) -> dict[tuple[str, ...], float]:
    text = generate_latest(metrics.registry).decode()
    return {
        tuple(
            sample.labels[label] for label in ("queue", "task", "outcome", "le") if label in sample.labels
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_finished_jobs_are_counted_by_queue_task_and_outcome_and_their_durations_add_up() -> None:
    theirs, ours = pair()
    with theirs, ours:
        reporter, metrics = Reporter(3, theirs), PoolMetrics("1", list)
        reporter.report([("mail", "send", "succeeded", 0.004), ("mail", "send", "succeeded", 2.0)])
        reporter.report([("mail", "send", "failed", 4000.0)])
        for report in receive(ours):
            assert report.worker == 3
            metrics.absorb(report)
    finished = samples(metrics, "pgworker_jobs_finished_total")
    assert finished == {("mail", "send", "succeeded"): 2, ("mail", "send", "failed"): 1}
    assert samples(metrics, "pgworker_job_duration_seconds_sum") == {
        ("mail", "send", "succeeded"): 2.004,
        ("mail", "send", "failed"): 4000.0,
    }
    buckets = {
        key[-1]: value
        for key, value in samples(metrics, "pgworker_job_duration_seconds_bucket").items()
        if "succeeded" in key
    }
    assert (buckets["0.005"], buckets["1.0"], buckets["2.5"], buckets["+Inf"]) == (1, 1, 2, 2)


def test_a_full_socket_drops_reports_without_waiting_and_counts_them() -> None:
    theirs, ours = pair()
    with theirs, ours:
        reporter, metrics = Reporter(0, theirs), PoolMetrics("1", list)
        sent = 0
        while not reporter.dropped:
            reporter.report([("q", "t", "succeeded", 0.0)])
            sent += 1
        for report in receive(ours):
            metrics.absorb(report)
        reporter.report([("q", "t", "succeeded", 0.0)])
        for report in receive(ours):
            metrics.absorb(report)
    assert samples(metrics, "pgworker_jobs_finished_total") == {("q", "t", "succeeded"): sent}
    assert samples(metrics, "pgworker_events_dropped_total") == {(): 1}


def test_a_monitor_that_is_gone_is_no_error() -> None:
    theirs, ours = pair()
    with theirs:
        ours.close()
        Reporter(0, theirs).report([("q", "t", "succeeded", 0.0)])


def test_many_tasks_at_once_are_spread_over_datagrams_and_none_is_lost() -> None:
    theirs, ours = pair()
    with theirs, ours:
        metrics = PoolMetrics("1", list)
        Reporter(0, theirs).report([("q" * 128, f"{'t' * 250}{number}", "succeeded", 0.0) for number in range(120)])
        for report in receive(ours):
            metrics.absorb(report)
    assert len(samples(metrics, "pgworker_jobs_finished_total")) == 120
    assert list(BUCKETS) == sorted(BUCKETS)
