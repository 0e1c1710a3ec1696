"""/metrics of a live pool: every name, by promtool and by a real Prometheus, and what deaths and restarts do to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pgworker.model.state import Outcome
from pgworker.observe.metrics import CATALOGUE
from tests.acceptance.test_start import fetch
from tests.process import jobs, test_pool
from tests.process.pool import Pool, eventually, free_port
from tests.process.test_pool import TTL, Scene, StartPool

scene = test_pool.scene
start_pool = test_pool.start_pool

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Page:
    """The metrics of one pool, as of now each time."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def text(self) -> str:
        status, text = fetch(self.port, "/metrics")
        assert status == 200
        return text

    def value(self, name: str, **labels: str) -> float | None:
        """Of one sample; None: it is not there."""
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    def finished(self, task: str, outcome: str) -> float:
        labels = {"queue": "default", "task": f"tests.process.jobs.{task}", "outcome": outcome}
        return self.value("pgworker_jobs_finished_total", **labels) or 0.0

    def wait_for_everything(self) -> None:
        """A sample of the database comes with the first look, what nobody serves with the one after two beats."""
        expected = {name for spec in CATALOGUE for name in spec.series}
        eventually(lambda: names(self.text) == expected, lambda: f"{names(self.text) ^ expected}")


def names(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on the PATH: apt-get install prometheus")
    return found


@pytest.fixture
def page() -> Page:
    return Page(free_port())


@pytest.fixture
def pool(page: Page, start_pool: StartPool) -> Pool:
    pool = start_pool(workers=2, heartbeat_interval=0.3, metrics_listen=f"127.0.0.1:{page.port}")
    pool.wait_for_log("the pool is ready")
    return pool


@pytest.mark.usefixtures("pool")
def test_a_scrape_has_every_name_of_the_catalogue_and_no_other_in_both_formats(scene: Scene, page: Page) -> None:
    promtool = program("promtool")
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "one"))
    page.wait_for_everything()
    words = [promtool, "check", "metrics"]
    checked = subprocess.run(words, input=page.text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr, checked.stdout) == (0, "", "")
    status, text = fetch(page.port, "/metrics", OPENMETRICS)
    assert status == 200
    told = {sample.name for family in parse_openmetrics(text) for sample in family.samples}  # type: ignore[no-untyped-call]
    assert told == names(page.text)
    request = urllib.request.Request(f"http://127.0.0.1:{page.port}/metrics", headers={"Accept": OPENMETRICS})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")


@contextmanager
def prometheus(program: str, directory: Path, target: int) -> Iterator[Callable[[str], Any]]:
    """A real one that scrapes this port every second; yields what asks its API."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "pgworker", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    directory.joinpath("prometheus.yml").write_text(json.dumps(config))
    words = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    with directory.joinpath("prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=directory
        )

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.usefixtures("pool")
def test_prometheus_scrapes_a_pool_without_an_error(scene: Scene, page: Page, tmp_path: Path) -> None:
    scene.wait_for_status("succeeded", scene.enqueue(jobs.quick, "one"))
    page.wait_for_everything()
    with prometheus(program("prometheus"), tmp_path, page.port) as ask:

        def values(query: str) -> list[float]:
            found = ask(f"query?query={query}")
            return [float(one["value"][1]) for one in found["result"]] if found else []

        eventually(lambda: values("up") == [1.0], "a scrape that went well")
        eventually(lambda: values("pgworker_jobs_finished_total{outcome='succeeded'}") == [1.0], "what has run")
        [target] = ask("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        known = {name.removesuffix("_total"): (one["type"], one["help"]) for name, [one] in ask("metadata").items()}
        expected = {spec.name.removesuffix("_total"): (spec.kind.value, spec.help) for spec in CATALOGUE}
        assert {name: one for name, one in known.items() if name.startswith("pgworker_")} == expected


@pytest.mark.usefixtures("pool")
def test_what_a_job_has_waited_is_from_when_it_was_due_by_the_clock_of_the_database(scene: Scene, page: Page) -> None:
    """One that was scheduled has not waited for its time, and one that stood behind a pause has."""
    db = scene.connection
    db.execute("insert into pgworker.queues (name, paused) values ('default', true)")
    late = scene.enqueue(jobs.quick, "late")
    db.execute("update pgworker.job_queue set run_at = run_at - interval '1 hour'")
    earlier = "run_at - interval '1 hour'"
    db.execute(f"update pgworker.jobs set (run_at, created_at) = row({earlier}, {earlier})".encode())
    db.execute("update pgworker.queues set paused = false")
    scene.wait_for_status("succeeded", late)
    labels = {"queue": "default", "task": "tests.process.jobs.quick"}

    def waited(part: str) -> float:
        return page.value(f"pgworker_job_wait_seconds_{part}", **labels) or 0.0

    def age_of(job: UUID) -> float:
        """Seconds since it was due, or enqueued if that was later."""
        since = "select extract(epoch from clock_timestamp() - greatest(run_at, created_at)) from pgworker.jobs"
        return float(scene.scalar(f"{since} where id = %s", job))

    eventually(lambda: waited("count") == 1, "it is told")
    first = waited("sum")
    assert 3600 <= first <= age_of(late)
    scheduled = jobs.quick.options(run_at=scene.scalar("select now() + interval '1.5 s'"))
    [soon] = scene.enqueue_together(scheduled.job(str(scene.directory), "soon"))
    scene.wait_for_status("succeeded", soon)
    eventually(lambda: waited("count") == 2, "it is told")
    assert 0 <= waited("sum") - first <= age_of(soon)


def test_a_worker_that_is_killed_takes_no_count_with_it(scene: Scene, page: Page, pool: Pool) -> None:
    counters = [spec.name for spec in CATALOGUE if spec.name.endswith("_total")]

    def counted() -> dict[tuple[str, str], float]:
        return {
            (sample.name, str(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
            if sample.name in counters or sample.name.endswith(("_count", "_sum", "_bucket"))
        }

    scene.wait_for_status("succeeded", *scene.enqueue_together(*scene.quick(*map(str, range(20)))))
    eventually(lambda: page.finished("quick", "succeeded") == 20, "all are told of")
    before, workers = counted(), pool.workers
    scene.wait_for_status("succeeded", scene.enqueue(jobs.die, "victim", "kill"))
    idle = next(pid for pid in workers if pid in pool.workers)
    os.kill(idle, signal.SIGKILL)
    eventually(lambda: page.value("pgworker_worker_exits_total", reason="crashed") == 2, "two deaths")
    eventually(lambda: page.value("pgworker_workers") == 2, "two workers again")
    assert not set(pool.workers) & set(workers)
    scene.wait_for_status("succeeded", *scene.enqueue_together(*scene.quick("after")))
    eventually(lambda: page.finished("quick", "succeeded") == 21, "the new ones are told of")
    after = counted()
    assert {name: (value, after.get(name)) for name, value in before.items() if after.get(name, -1) < value} == {}
    assert (page.finished("die", "crashed"), page.finished("die", "succeeded")) == (1, 1)
    assert page.value("pgworker_executions_reclaimed_total", reason="crashed") == 1
    by_place = [page.value("pgworker_worker_jobs_total", worker=place) or 0 for place in "01"]
    assert sum(by_place) == 22, "what a reclaim has recorded no worker has ended"
    assert page.value("pgworker_events_dropped_total") == 0


def test_what_could_not_be_recorded_as_its_lease_was_gone_counts_as_lost_and_nothing_else(
    scene: Scene, page: Page, start_pool: StartPool
) -> None:
    stopped = start_pool(workers=1, slots=3, lease_ttl=TTL, metrics_listen=f"127.0.0.1:{page.port}")
    names = ("plain", "effect", "effect_async")
    directory = str(scene.directory)
    several = scene.enqueue_together(
        jobs.hold.job(directory, "plain"),
        jobs.effect.job(directory, "effect", "wait"),
        jobs.effect_async.job(directory, "effect_async", "wait"),
    )
    for name in names:
        scene.wait_for("start", name)
    leases = scene.leases()
    stopped.signal_all(signal.SIGSTOP)
    start_pool(workers=1, slots=3, lease_ttl=TTL, heartbeat_interval=0.3)
    for name in names:
        scene.wait_for("start", name, execution=2)
    for name in names:
        scene.open_gate(name)
    scene.wait_for_status("succeeded", *several)
    stopped.signal_all(signal.SIGCONT)
    tasks = ("hold", "effect", "effect_async")
    eventually(lambda: all(page.finished(task, "lost") for task in tasks), lambda: page.text)
    for task in tasks:
        counted = {outcome.value: page.finished(task, outcome.value) for outcome in Outcome}
        assert {outcome: count for outcome, count in counted.items() if count} == {"lost": 1}, task
    eventually(lambda: page.value("pgworker_leases_lost_total") == leases, "each lease once")
    assert stopped.log().count("event=result_lost") == len(tasks)


def test_a_monitor_that_is_killed_begins_to_count_anew_and_says_when(scene: Scene, page: Page, pool: Pool) -> None:
    """Counters that begin again are what `rate` expects; no worker notices."""
    scene.wait_for_status("succeeded", *scene.enqueue_together(*scene.quick(*map(str, range(5)))))
    eventually(lambda: page.finished("quick", "succeeded") == 5, "all are told of")
    begun, workers, monitor = page.value("pgworker_start_timestamp_seconds"), pool.workers, pool.monitor
    assert begun is not None
    os.kill(monitor, signal.SIGKILL)
    eventually(lambda: pool.monitor != monitor, "another monitor")
    eventually(lambda: (page.value("pgworker_start_timestamp_seconds") or 0) > begun, "a page of the new one")
    scene.wait_for_status("succeeded", *scene.enqueue_together(*scene.quick("six")))
    eventually(lambda: page.finished("quick", "succeeded") == 1, "the one that came after it")
    assert pool.workers == workers


def test_gauges_follow_the_pool(scene: Scene, page: Page, pool: Pool) -> None:
    scene.enqueue(jobs.hold, "held")
    eventually(lambda: page.value("pgworker_jobs_running") == 1, "a job that runs")
    gauges = ["workers", "workers_wanted", "slots", "claiming_paused", "database_up"]
    eventually(lambda: [page.value(f"pgworker_{name}") for name in gauges] == [2, 2, 2, 0, 1], "two workers")
    pool.send(signal.SIGTTOU)
    eventually(lambda: page.value("pgworker_workers_wanted") == 1, "one worker less is wanted")
    pool.send(signal.SIGUSR2)
    eventually(lambda: page.value("pgworker_claiming_paused") == 1, "a pause")
    pool.send(signal.SIGTERM)
    eventually(lambda: page.value("pgworker_workers_wanted") == 0, "a pool that drains wants nobody")
    assert page.value("pgworker_jobs_running") == 1
    scene.open_gate("held")
    assert pool.wait() == 0


def test_what_has_ended_is_counted_while_a_statement_of_the_monitor_hangs(scene: Scene, page: Page, pool: Pool) -> None:
    """The socket of the workers must not fill up meanwhile."""
    db = scene.connection
    eventually(lambda: page.value("pgworker_workers") == 2, "two workers")
    with db.transaction():
        db.execute("lock table pgworker.worker_heartbeats in access exclusive mode")
        hanging = "select count(*) from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
        eventually(lambda: scene.scalar(hanging, "pgworker monitor") == 1, "a beat that hangs")
        with psycopg.connect(db.info.dsn) as other:
            jobs.app.enqueue_many(scene.quick(*map(str, range(500))), other)
        eventually(lambda: page.finished("quick", "succeeded") == 500, "all are told of")
        assert page.value("pgworker_events_dropped_total") == 0
    assert re.search(r"ERROR|Traceback", pool.log()) is None
