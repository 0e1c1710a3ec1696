"""Two pools under a mixed load, scraped by a real Prometheus: every panel has data, alerts see what is wrong."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgworker.control.queues import pause_queues
from tests.deploy import dashboard, load, prometheus
from tests.deploy.dashboard import Query
from tests.deploy.prometheus import Prometheus, Sample
from tests.process.pool import ROOT, Pool, eventually, free_port, start

Connect = Callable[[], psycopg.Connection[Any]]

QUERIES = list(dashboard.queries(dashboard.load()))
PATIENCE = 90.0
"""Seconds for all panels to have data: what is counted in the database is counted every 15 s."""

SCHEDULED, PAUSED, UNSERVED, DEAD = 7, 5, 3, 2
"""How many jobs there are for good of each kind, whatever else is enqueued."""


@pytest.fixture
def pools(dsn: str, tmp_path: Path) -> Iterator[dict[str, Pool]]:
    """Two pools on one database, by the address of their metrics."""
    prometheus.tool("prometheus")
    with ExitStack() as started:
        found = {}
        for name, workers in (("one", 2), ("other", 1)):
            address = f"127.0.0.1:{free_port()}"
            settings = {"workers": workers, "slots": 2, "queues": ["default", "mail"], "metrics_listen": address}
            settings["metrics_token_file"] = str(token_file(tmp_path))
            begun = start(dsn, tmp_path / f"{name}.log", app="tests.deploy.load:app", cwd=ROOT, **settings)
            found[address] = started.enter_context(begun)
        for pool in found.values():
            pool.wait_for_log("the pool is ready")
        yield found


@pytest.fixture
def scraper(pools: dict[str, Pool], tmp_path: Path) -> Iterator[Prometheus]:
    with prometheus.start(tmp_path, list(pools), token_file(tmp_path)) as server:
        yield server


def token_file(directory: Path) -> Path:
    """One for the pools and for Prometheus; which strips what is around it too."""
    file = directory / "metrics_token"
    if not file.exists():
        file.touch(0o600)
        file.write_text(f"{secrets.token_urlsafe(24)}\n")
    return file


def enqueue_what_stays(connection: psycopg.Connection[Any]) -> None:
    """What waits until the end of the test, what nobody serves, and what goes wrong."""
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    pause_queues(connection, ["mail"])
    for _ in range(SCHEDULED):
        load.succeed.using(connection).options(run_at=tomorrow).enqueue()
    for _ in range(PAUSED):
        load.succeed.using(connection).options(queue="mail").enqueue()
    for _ in range(UNSERVED):
        connection.execute("select pgworker.enqueue('nobody.has_this', '{}')")
    for _ in range(DEAD):
        load.give_up.using(connection).enqueue()
    load.crash.using(connection).enqueue()
    load.time_out.using(connection).enqueue()


def keep_busy(connection: psycopg.Connection[Any]) -> None:
    """A little of what goes on all the time: rates are of the last seconds."""
    for _ in range(3):
        load.succeed.using(connection).enqueue(0.01)
    load.fail.using(connection).enqueue()


def answered(query: Query, samples: list[Sample]) -> bool:
    """Whether a panel would show something, and every line of it under its name."""
    for sample in samples:
        assert query.legend_labels <= set(sample.labels), f"{query.panel}: {sample.labels} for {query.legend}"
    return any(math.isfinite(sample.value) for sample in samples)


def by(samples: list[Sample], label: str) -> dict[str, float]:
    return {sample.labels[label]: sample.value for sample in samples}


def ask(scraper: Prometheus, panel: str) -> list[Sample]:
    """What the first query of a panel says."""
    return scraper.query(next(query.asked for query in QUERIES if query.panel == panel))


def states(scraper: Prometheus) -> dict[str, set[str]]:
    """Which alerts are inactive, pending and firing, once all were evaluated."""

    def look() -> list[Any] | None:
        rules = scraper.rules()
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    found = eventually(look, "every rule evaluated")
    assert found is not None
    assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}
    return {state: {rule["name"] for rule in found if rule["state"] == state} for state in ("pending", "firing")}


@pytest.mark.timeout(240)
def test_every_panel_and_every_alert_of_two_pools_under_load_is_answered(
    pools: dict[str, Pool], scraper: Prometheus, connect: Connect
) -> None:
    connection = connect()
    enqueue_what_stays(connection)
    silent = list(QUERIES)

    def all_answered() -> bool:
        keep_busy(connection)
        silent[:] = [query for query in silent if not answered(query, scraper.query(query.asked))]
        return not silent

    eventually(all_answered, lambda: f"data for {[(one.panel, one.asked) for one in silent]}", PATIENCE)

    for label, selector in dashboard.variables(dashboard.load()).items():
        assert scraper.label_values(label, dashboard.filled(selector)), label
    for expression in dashboard.marks(dashboard.load())[:1]:
        assert len(scraper.query(dashboard.filled(expression))) == len(pools)

    # What both pools say of one database is there once; what each says of itself is added up.
    def counted() -> bool:
        return [sample.value for sample in ask(scraper, "Dead letters")] == [DEAD + 2.0]  # crashed and timed out too

    eventually(counted, lambda: f"the dead letters counted, not {ask(scraper, 'Dead letters')}", PATIENCE)
    assert by(ask(scraper, "Waiting jobs by queue"), "queue")["mail"] == PAUSED
    assert by(ask(scraper, "Scheduled, to be retried, running"), "state")["scheduled"] == SCHEDULED
    assert [sample.value for sample in ask(scraper, "Unserved jobs")] == [UNSERVED]
    assert [sample.value for sample in ask(scraper, "Paused queues")] == [1]
    assert [sample.value for sample in scraper.query("sum(pgworker_slots)")] == [6]
    assert set(by(ask(scraper, "Executions by outcome"), "outcome")) >= {"succeeded", "failed", "timed_out", "crashed"}

    def alerted() -> bool:
        keep_busy(connection)  # a ratio is one of twenty jobs or more
        seen = states(scraper)
        return {"PgworkerQueuePaused", "PgworkerJobsUnserved", "PgworkerErrorRatioHigh"} <= seen["pending"]

    eventually(alerted, lambda: f"the alerts on what is wrong pending, not {states(scraper)}", PATIENCE)
    seen = states(scraper)
    healthy = {"PgworkerAbsent", "PgworkerTargetDown", "PgworkerDatabaseDown", "PgworkerLeaseRenewalsLate"}
    assert not (healthy | {"PgworkerCrashLoop", "PgworkerOldestJobOld"}) & (seen["pending"] | seen["firing"])

    next(iter(pools.values())).kill()
    eventually(lambda: "PgworkerTargetDown" in states(scraper)["pending"], "the pool that was killed missed", PATIENCE)
    assert "PgworkerAbsent" not in states(scraper)["pending"]
    assert [sample.value for sample in ask(scraper, "Paused queues")] == [1]
