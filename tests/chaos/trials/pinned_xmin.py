"""An old transaction that keeps every dead row, and four reports that read all day, beside a steady load.

In the first third of the time there are neither. How long the pool's own claims take is what the server logs of their
transactions, of all or of one in twenty (`log_transaction_sample_rate`): the sum of bind and execute of the claim.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import Any

import psycopg

from pgworker.bench.jobs import app, noop
from tests.chaos.trials.figures import invariants, percentile, timed, told
from tests.chaos.trials.ground import database, meanwhile, pause, running_pool, scalar, wait_until_quiet
from tests.chaos.trials.trial import Bench, Figure, Trial

FULL_RATE = 2000
SHORT_RATE = 300
_LONG = 60  # seconds from which on the full rate is asked for
READERS = 4
REPORT = """
    select task, outcome, count(*), avg(finished_at - started_at), max(length(payload::text))
    from pgworker.jobs join pgworker.job_executions on id = job_id group by task, outcome
"""

_CLAIM = b"insert into pgworker.job_leases"
_LINE = re.compile(
    rb"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) UTC \[(\d+)\][^\n]*?duration: ([\d.]+) ms  (bind|execute) ", re.M
)


def run(bench: Bench) -> Sequence[Figure]:
    rate = FULL_RATE if bench.size >= _LONG else SHORT_RATE
    third = bench.size / 3
    settings: dict[str, Any] = {"app": "pgworker.bench.jobs:app", "workers": 2}
    with (
        database(bench) as (dsn, connection),
        _logged(connection, 0.05 if bench.size >= _LONG else 1),
        running_pool(dsn, bench.directory / "pool.log", **settings) as pool,
        ExitStack() as stack,
    ):
        stack.enter_context(meanwhile(lambda is_over: _load(is_over, dsn, rate)))
        pause(1)  # the pool has learned how short the jobs are
        started = time.time()
        pause(third)
        pinned = time.time()
        stack.enter_context(_pin(dsn))
        for _ in range(READERS):
            stack.enter_context(meanwhile(lambda is_over: _read(is_over, dsn)))
        pause(third)
        last = time.time()
        pause(third)
        ended = time.time()
        ran = [_ran(connection, *phase) for phase in ((started, pinned), (pinned, last), (last, ended))]
        dead = scalar(connection, "select n_dead_tup from pg_stat_user_tables where relname = 'job_queue'")
        stack.close()
        wait_until_quiet(connection)
        pool.send(signal.SIGTERM)
        pool.wait()
        well = invariants(connection)
    claims = claims_of(bench.server.directory / "postgres.log")
    before, *_, after = [_between(claims, *phase) for phase in ((started, pinned), (pinned, last), (last, ended))]
    return [
        told("jobs/s offered", str(rate)),
        _rate(bench, ran[0], ran[2]),
        _claim_times(bench, before, after),
        told("claims measured, before and in the last third", f"{len(before):,}, {len(after):,}"),
        told("dead rows of job_queue at the end", f"{dead:,}"),
        well,
    ]


def _rate(bench: Bench, before: float, after: float) -> Figure:
    share = after / before if before else 0.0
    found = f"{share:.1%} ({before:,.0f} → {after:,.0f} /s)"
    return Figure("rate in the last third, of that before", "≥ 95 %", found, timed(bench, _LONG, share >= 0.95))


def _claim_times(bench: Bench, before: Sequence[float], after: Sequence[float]) -> Figure:
    one, two = (percentile(claims, 99) if claims else 0.0 for claims in (before, after))
    times = two / one if one else 0.0
    found = f"{times:.2f}× ({one:.2f} → {two:.2f} ms)"
    return Figure("claims, p99", "≤ 2×", found, timed(bench, _LONG, 0 < times <= 2))


@contextmanager
def _logged(connection: psycopg.Connection[Any], share: float) -> Iterator[None]:
    """So many transactions of whoever connects from now on."""
    name = connection.info.dbname
    connection.execute(f"alter database {name} set log_transaction_sample_rate = {share}".encode())
    yield


def _load(is_over: Event, dsn: str, rate: int) -> None:
    """So many jobs a second, in twenty batches a second."""
    began, sent = time.monotonic(), 0
    job = noop.job(user_id=1, email="someone@example.com", template="welcome", note="")
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not is_over.wait(0.05):
            due = int((time.monotonic() - began) * rate) - sent
            app.enqueue_many([job] * due, connection)
            sent += due


@contextmanager
def _pin(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select txid_current()")
        yield


def _read(is_over: Event, dsn: str) -> None:
    """Read everything, and rest nine times as long: four who do are a load, not the whole machine."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rest = 0.0
        while not is_over.wait(rest):
            began = time.monotonic()
            connection.execute(REPORT)
            rest = 9 * (time.monotonic() - began)


def _ran(connection: psycopg.Connection[Any], since: float, until: float) -> float:
    """Executions that ended in a second, between two times."""
    at = "finished_at >= to_timestamp(%s) and finished_at < to_timestamp(%s)"
    asked = f"select count(*) from pgworker.job_executions where {at}"
    return float(scalar(connection, asked, since, until)) / (until - since)


def claims_of(log: Path) -> list[tuple[float, float]]:
    """Of each claim in the log of a server: when it ended, and how many milliseconds it took there."""
    claims: list[tuple[float, float]] = []
    binding: dict[bytes, float] = {}
    text = log.read_bytes()
    found = list(_LINE.finditer(text))
    for one, following in zip(found, [*found[1:], None], strict=True):
        body = text[one.end() : following.start() if following else len(text)]
        if _CLAIM not in body:
            continue
        at, pid, took, what = one.groups()
        if what == b"bind":
            binding[pid] = float(took)
            continue
        moment = datetime.strptime(at.decode(), "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc)
        claims.append((moment.timestamp(), float(took) + binding.pop(pid, 0.0)))
    return claims


def _between(claims: Sequence[tuple[float, float]], since: float, until: float) -> list[float]:
    return [took for at, took in claims if since <= at < until]


TRIAL = Trial(
    name="pinned_xmin",
    promise="under a pinned xmin and four reports the rate holds, and claims take at most twice as long",
    unit="seconds",
    full=2700,
    short=3,
    run=run,
    server_options=(("log_timezone", "UTC"), ("log_parameter_max_length", "0")),
)
