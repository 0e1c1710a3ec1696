from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pgworker.model.state import Outcome
from pgworker.observe.catalogue import CATALOGUE, Kind, Scope
from pgworker.observe.events import Record, Report, Tally
from pgworker.observe.metrics import (
    MAX_PAIRS,
    DatabaseSample,
    PoolMetrics,
    PoolState,
    QueueSample,
    WorkerGauge,
)

HOSTILE = (
    'quote"',
    "back\\slash",
    "new\nline",
    "\r\n",
    'both\\"\n',
    "ünïcödé 🐘",
    "}{",
    'x"} 1\nfake_total 1',
    "\x01\x7f",
    "",
)


def one(outcome: Outcome = Outcome.SUCCEEDED) -> Tally:
    tally = Tally()
    tally.end(outcome)
    return tally


def full() -> PoolMetrics:
    """Something of everything."""
    worker = WorkerGauge(0, is_ready=True, slots=4, running=3, uss_bytes=5_000_000)
    metrics = PoolMetrics("1.2.3", lambda: PoolState([worker], {0: 1.5}, wanted=2, is_paused=True, is_connected=True))
    metrics.absorb(Report(0, 0, 0, [Record("default", "add", one())]))
    metrics.set_sample(sample("default"), valid_for=3600)
    return metrics


def sample(*queues: str) -> DatabaseSample:
    jobs = {"pending": 4, "scheduled": 3, "failed": 2, "running": 1}
    found = [QueueSample(queue, jobs, 12.5, is_paused=False, unserved=1) for queue in queues]
    return DatabaseSample(1.5e9, found, dead_letters=7, default_jobs=0)


def openmetrics(metrics: PoolMetrics) -> str:
    page: bytes = generate_openmetrics(metrics.registry)  # type: ignore[no-untyped-call]
    return page.decode()


def check(text: bytes) -> None:
    """What promtool says of an exposition: nothing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH: apt-get install prometheus")
    ended = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr.decode(), ended.stdout.decode()) == (0, "", "")


def test_every_metric_of_the_catalogue_is_told_and_no_other() -> None:
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(full().registry).decode())
    }
    told = {sample_.name for family in families.values() for sample_ in family.samples}
    assert told == {name for spec in CATALOGUE for name in spec.series}
    for spec in CATALOGUE:
        family = families[spec.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind.value, spec.help)
        assert {frozenset(one_.labels) - {"le"} for one_ in family.samples} == {frozenset(spec.labels)}


def test_names_are_by_convention() -> None:
    names = [spec.name for spec in CATALOGUE]
    assert len(set(names)) == len(names)
    for spec in CATALOGUE:
        assert re.fullmatch(r"pgworker_[a-z]+(_[a-z]+)*", spec.name)
        assert spec.name.endswith("_total") == (spec.kind is Kind.COUNTER)
        assert spec.help.endswith(".")
        assert "pool" not in spec.labels
    database = {spec.name for spec in CATALOGUE if spec.scope is Scope.DATABASE}
    assert {name for name in names if name.startswith("pgworker_queue")} <= database


def test_openmetrics_says_the_same_without_a_time_of_creation() -> None:
    """`_created` would be the start of the monitor for all of them; there is one gauge for that."""
    text = openmetrics(full())
    told = {one_.name for family in parse_openmetrics(text) for one_ in family.samples}  # type: ignore[no-untyped-call]
    assert told == {name for spec in CATALOGUE for name in spec.series}
    assert text.endswith("# EOF\n")


def test_promtool_finds_nothing_to_object_to() -> None:
    check(generate_latest(full().registry))
    check(generate_latest(PoolMetrics("1", PoolState).registry))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_inside_its_label(name: str) -> None:
    metrics = PoolMetrics(name, PoolState)
    metrics.absorb(Report(0, 0, 0, [Record(name, name, one())]))
    metrics.set_sample(sample(name), valid_for=3600)
    text = generate_latest(metrics.registry)
    told = {
        (label, value)
        for family in text_string_to_metric_families(text.decode())
        for one_ in family.samples
        for label, value in one_.labels.items()
    }
    assert {value for label, value in told if label in ("queue", "task", "version")} == {name}
    assert {label for label, _ in told} == {"queue", "task", "outcome", "le", "reason", "state", "version"}
    check(text)
    list(parse_openmetrics(openmetrics(metrics)))  # type: ignore[no-untyped-call]


def test_after_200_pairs_of_queue_and_task_the_rest_is_other_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = PoolMetrics("1", PoolState)
    for number in range(MAX_PAIRS):
        metrics.absorb(Report(0, 0, 0, [Record("default", f"task{number}", one())]))
    assert caplog.records == []
    for number in range(3 * MAX_PAIRS):
        metrics.absorb(Report(0, 0, 0, [Record(f"queue{number}", "t", one(Outcome.FAILED))]))
    metrics.absorb(Report(0, 0, 0, [Record("default", "task7", one())]))
    metrics.count_reclaimed("elsewhere", "t", Outcome.CRASHED)

    def value(queue: str, task: str, outcome: str) -> float | None:
        labels = {"queue": queue, "task": task, "outcome": outcome}
        return metrics.registry.get_sample_value("pgworker_jobs_finished_total", labels)

    assert value("other", "other", "failed") == 3 * MAX_PAIRS
    assert value("other", "other", "crashed") == 1
    assert value("default", "task7", "succeeded") == 2
    assert value("queue0", "t", "failed") is None
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "more than 200 pairs of queue and task: from now on new ones are counted as other, other on /metrics"
    ]
    pairs = {(s.labels["queue"], s.labels["task"]) for f in metrics.collect() for s in f.samples if "task" in s.labels}
    assert len(pairs) == MAX_PAIRS + 1


def test_every_reason_is_there_from_the_beginning_so_that_the_first_event_is_a_rise() -> None:
    metrics = PoolMetrics("1", PoolState)

    def value(name: str, reason: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"reason": reason})

    for reason in ("crashed", "timed_out", "cancelled", "lost", "released"):
        assert value("pgworker_executions_reclaimed_total", reason) == 0
        assert value("pgworker_worker_exits_total", reason) == 0
    metrics.count_exit("drained")
    metrics.count_reclaimed("default", "add", None)
    metrics.count_reclaimed("default", "add", Outcome.TIMED_OUT)
    assert value("pgworker_worker_exits_total", "drained") == 1
    assert value("pgworker_executions_reclaimed_total", "not_started") == 1
    assert value("pgworker_executions_reclaimed_total", "timed_out") == 1
    finished = {"queue": "default", "task": "add", "outcome": "timed_out"}
    assert metrics.registry.get_sample_value("pgworker_jobs_finished_total", finished) == 1


def test_what_the_database_held_too_long_ago_is_not_shown_but_when_that_was_is() -> None:
    metrics = PoolMetrics("1", PoolState)

    def shown() -> set[str]:
        return {spec.name for spec in CATALOGUE if spec.scope is Scope.DATABASE and sampled(metrics, [spec.name])}

    assert shown() == set()
    metrics.set_sample(sample("default"), valid_for=3600)
    assert shown() == {spec.name for spec in CATALOGUE if spec.scope is Scope.DATABASE}
    begun = time.monotonic()
    metrics.set_sample(sample("default"), valid_for=0)
    assert time.monotonic() > begun
    assert shown() == {"pgworker_database_sample_timestamp_seconds"}


def sampled(metrics: PoolMetrics, names: Sequence[str]) -> list[float]:
    return [one_.value for family in metrics.collect() for one_ in family.samples if one_.name in names]


def test_slots_and_workers_are_of_the_ready_ones_and_the_jobs_of_all() -> None:
    workers = [
        WorkerGauge(0, is_ready=True, slots=4, running=3, uss_bytes=1),
        WorkerGauge(2, is_ready=False, slots=4, running=0, uss_bytes=1),
    ]
    metrics = PoolMetrics("1", lambda: PoolState(workers, {0: 1.0, 1: 2.0, 2: 0.5}, wanted=3))
    gauges = ["pgworker_workers", "pgworker_workers_wanted", "pgworker_slots", "pgworker_jobs_running"]
    assert [sampled(metrics, [name]) for name in gauges] == [[1], [3], [4], [3]]
    cpu = {
        worker: metrics.registry.get_sample_value("pgworker_worker_cpu_seconds_total", {"worker": worker})
        for worker in "012"
    }
    assert cpu == {"0": 1.0, "1": 2.0, "2": 0.5}, "who was in place 1 is gone, what he has used is not"
