from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgworker.model.names import MAX_QUEUE_LENGTH, MAX_TASK_LENGTH
from pgworker.model.state import Outcome
from pgworker.observe.events import DURATION_BUCKETS, WAIT_BUCKETS, Reporter, receive
from pgworker.observe.metrics import PoolMetrics, PoolState

Samples = dict[tuple[str, ...], float]


class Line(NamedTuple):
    """A pool's socket pair, with a worker at one end and the monitor's metrics at the other."""

    theirs: socket.socket
    ours: socket.socket
    metrics: PoolMetrics

    def hear(self) -> None:
        """Take everything that was sent; nobody can send afterwards."""
        self.theirs.close()
        for report in receive(self.ours):
            self.metrics.absorb(report)

    def samples(self, name: str) -> Samples:
        return samples(self.metrics, name)


@pytest.fixture
def line() -> Iterator[Line]:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        yield Line(theirs, ours, PoolMetrics("1", PoolState))


def samples(metrics: PoolMetrics, name: str) -> Samples:
    """The values by their labels, in the order queue, task, outcome, le."""
    text = generate_latest(metrics.registry).decode()
    return {
        tuple(
            sample.labels[label] for label in ("queue", "task", "outcome", "le") if label in sample.labels
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_executions_are_counted_by_queue_task_and_outcome_and_their_times_add_up(line: Line) -> None:
    reporter = Reporter(3, line.theirs)
    reporter.count("mail", "send", Outcome.SUCCEEDED, 0.004, 0.5)
    reporter.count("mail", "send", Outcome.SUCCEEDED, 2.0, 0.25)
    reporter.count("other", "send", Outcome.SUCCEEDED, 0.25, 0.0)
    reporter.send()
    reporter.count("mail", "send", Outcome.FAILED, 4000.0, 8000.0)
    reporter.send()
    line.hear()
    finished = line.samples("pgworker_jobs_finished_total")
    assert {key: value for key, value in finished.items() if value} == {
        ("mail", "send", "succeeded"): 2,
        ("mail", "send", "failed"): 1,
        ("other", "send", "succeeded"): 1,
    }
    assert {outcome for _, _, outcome in finished} == {outcome.value for outcome in Outcome}
    assert line.samples("pgworker_job_duration_seconds_sum") == {("mail", "send"): 4002.004, ("other", "send"): 0.25}
    assert line.samples("pgworker_job_wait_seconds_sum") == {("mail", "send"): 8000.75, ("other", "send"): 0}
    durations = line.samples("pgworker_job_duration_seconds_bucket")
    assert [durations["mail", "send", bound] for bound in ("0.005", "1.0", "2.5", "1800.0", "+Inf")] == [1, 1, 2, 2, 3]
    assert durations["other", "send", "0.1"] == 0
    assert durations["other", "send", "0.25"] == 1, "a bound is a part of what is below it"
    waits = line.samples("pgworker_job_wait_seconds_bucket")
    assert [waits["mail", "send", bound] for bound in ("0.1", "0.25", "0.5", "3600.0", "+Inf")] == [0, 1, 2, 2, 3]


def test_what_could_not_be_recorded_counts_as_lost_and_its_lease_once(line: Line) -> None:
    reporter = Reporter(3, line.theirs)
    reporter.count("mail", "send", Outcome.SUCCEEDED, 0.004, 0.5)
    reporter.count("mail", "send", Outcome.SUCCEEDED, 0.004, 0.5)
    reporter.count("mail", "send", Outcome.FAILED, 0.004, 0.5)
    reporter.lose("mail", "send", Outcome.SUCCEEDED)
    reporter.lose("mail", "send", Outcome.FAILED)
    reporter.lose_lease()
    reporter.send()
    reporter.count("mail", "send", Outcome.SUCCEEDED, 0.004, 0.5)
    reporter.send()
    line.hear()
    finished = {key: value for key, value in line.samples("pgworker_jobs_finished_total").items() if value}
    assert finished == {("mail", "send", "succeeded"): 2, ("mail", "send", "lost"): 2}
    assert line.samples("pgworker_leases_lost_total") == {(): 1}
    assert line.samples("pgworker_job_duration_seconds_count") == {("mail", "send"): 4}


def test_the_bounds_of_the_histograms_rise() -> None:
    for bounds in (DURATION_BUCKETS, WAIT_BUCKETS):
        assert list(bounds) == sorted(set(bounds))


def test_a_full_socket_drops_reports_without_waiting_and_counts_the_executions(line: Line) -> None:
    reporter, sent = Reporter(0, line.theirs), 0
    while not reporter.dropped:
        for _ in range(3):
            reporter.count("q", "t", Outcome.SUCCEEDED, 0.0, 0.0)
        reporter.send()
        sent += 3
    assert reporter.dropped == 3
    line.ours.recv(1 << 20)  # room for one more
    reporter.count("q", "t", Outcome.SUCCEEDED, 0.0, 0.0)
    reporter.send()
    assert reporter.dropped == 0
    line.hear()
    assert line.samples("pgworker_jobs_finished_total")["q", "t", "succeeded"] == sent - 3 - 3 + 1
    assert line.samples("pgworker_events_dropped_total") == {(): 3}


def test_a_monitor_that_is_gone_is_no_error(line: Line) -> None:
    line.ours.close()
    reporter = Reporter(0, line.theirs)
    reporter.count("q", "t", Outcome.SUCCEEDED, 0.0, 0.0)
    reporter.send()
    assert reporter.dropped == 1


def test_many_tasks_with_the_longest_names_are_spread_over_datagrams_and_none_is_lost(line: Line) -> None:
    reporter = Reporter(0, line.theirs)
    names = [("q" * MAX_QUEUE_LENGTH, f"{number:0{MAX_TASK_LENGTH}}") for number in range(120)]
    for queue, task in names:
        reporter.count(queue, task, Outcome.SUCCEEDED, 0.0, 0.0)
    reporter.send()
    line.hear()
    assert list(line.samples("pgworker_job_wait_seconds_count")) == names


def test_a_report_is_of_one_size_whatever_is_in_it(line: Line) -> None:
    """So the socket holds as many of a busy pool with long names as of one with short ones."""
    sizes = set()
    for queue, task, outcome in [("q", "t", Outcome.LOST), ("q" * 128, "t" * 256, Outcome.SUCCEEDED)]:
        reporter = Reporter(0, line.theirs)
        for _ in range(500):
            reporter.count(queue, task, outcome, 1e6, 1e6)
        reporter.send()
        sizes.add(len(line.ours.recv(1 << 20)))
    assert len(sizes) == 1
    assert sizes.pop() < 1024


@pytest.mark.parametrize("size", [1, 7, 8, 100, 600, 20_000])
def test_what_is_no_report_is_passed_over(line: Line, size: int) -> None:
    """A handler that writes to descriptors which are none of its own must not end the monitor."""
    line.theirs.send(os.urandom(size))
    line.theirs.send(b"\xff" * size)
    reporter = Reporter(0, line.theirs)
    reporter.count("q", "t", Outcome.SUCCEEDED, 0.0, 0.0)
    reporter.send()
    line.hear()
    assert line.samples("pgworker_jobs_finished_total")["q", "t", "succeeded"] == 1


def test_reports_that_are_taken_while_others_ask_for_the_page_are_whole(line: Line) -> None:
    """A histogram's count is that of its last bucket, and of the executions of its pair, in every scrape."""
    reporter = Reporter(0, line.theirs)

    def listen() -> None:
        for report in receive(line.ours):
            line.metrics.absorb(report)

    with _in_thread(listen):
        for number in range(300):
            for _ in range(5):
                reporter.count("q", f"t{number % 3}", Outcome.SUCCEEDED, 0.1, 0.1)
            reporter.send()
            if number % 30 == 29:
                text = generate_latest(line.metrics.registry).decode()
                values = {one.name: one.value for f in text_string_to_metric_families(text) for one in f.samples}
                durations, waits = (values.get(f"pgworker_job_{of}_seconds_count", 0) for of in ("duration", "wait"))
                assert durations == waits
                assert durations % 5 == 0
        line.theirs.close()
    finished = line.samples("pgworker_jobs_finished_total")
    assert sum(finished.values()) + line.samples("pgworker_events_dropped_total")[()] + reporter.dropped == 1500


@contextmanager
def _in_thread(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()
