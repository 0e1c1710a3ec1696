"""A line that is cut, silent, dead or slow: a pool is back soon after it heals, and slowness costs no lease."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.db.migrate import migrate
from pgworker.db.scratch import scratch_database
from pgworker.lifecycle.cancel import cancel_job
from tests.chaos.hosts import hosts, why_no_hosts
from tests.chaos.proxy import Proxy
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import Pool, eventually, start
from tests.sql.invariants import STORED, offences

_TTL = 6.0
_SLOW = 0.5
_FOUND = 10.0
_LONG_TTL = 20.0
_SILENCE = 20.0  # seconds of it, unless the trial is to be short: longer than a lease
_CABLE = 15.0  # seconds without it: longer than it takes to be found, and not as long as a lease

_RENEWED = """
    select min(expires_at - claimed_at) > %s * interval '1 s' from pgworker.job_leases
"""


def run(bench: Bench) -> Sequence[Figure]:
    """Cut, and make slow, so often; pull the cable a third as often, where there can be hosts of their own."""
    with ExitStack() as stack:
        dsn = stack.enter_context(scratch_database(bench.server.dsn, "template0"))
        migrate(dsn)
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        found, lost = _cut_and_slow(bench, connection, dsn)
        silent = [_fall_silent(bench, connection, dsn, n) for n in range(max(1, bench.size // 5))]
        cables = bench.size // 3
        missing = why_no_hosts()
        pulled = [] if missing else [_pull_the_cable(bench, connection, dsn, n) for n in range(cables)]
        broken = offences(connection, STORED)
    return [
        Figure("back after a cut", f"< {_FOUND:g} s", f"{max(found):.1f} s at worst", max(found) < _FOUND),
        Figure(f"executions lost to {_SLOW * 1000:g} ms of latency", "0", f"{lost}", lost == 0),
        Figure("silence is found", f"< {_FOUND:g} s", *_worst([one.found for one in silent], _FOUND)),
        Figure("at work again after it", f"< {_FOUND:g} s", *_worst([one.back for one in silent], _FOUND)),
        Figure("work stops before its lease ends", f"< {_TTL:g} s", *_worst([one.stopped for one in silent], _TTL)),
        Figure(
            "a pulled cable is found",
            f"< {_FOUND:g} s",
            f"{max(pulled):.1f} s at worst" if pulled else missing or "not tried at this size",
            max(pulled) < _FOUND if pulled else None,
        ),
        Figure("invariants broken", "0", f"{len(broken)} {broken or ''}", not broken),
    ]


def _cut_and_slow(bench: Bench, connection: Connection[Any], dsn: str) -> tuple[list[float], int]:
    with Proxy.before(dsn) as proxy, _pool(bench, proxy.dsn(dsn), "near", _TTL) as pool:
        found = []
        for number in range(bench.size):
            proxy.cut(how=bench.dice.choice(["rst", "fin"]))
            began = time.monotonic()
            _enqueue(bench, connection, jobs.quick, f"cut{number}")
            _wait_for_start(bench, f"cut{number}")
            eventually(lambda: "pgworker monitor" in proxy.names(), "a monitor that is back")
            found.append(time.monotonic() - began)
        for number in range(bench.size):
            _enqueue(bench, connection, jobs.hold, f"slow{number}")
            _wait_for_start(bench, f"slow{number}")
            proxy.delay(_SLOW)
            eventually(_asks(connection, _RENEWED, _TTL * 1.25), pool.log)
            (bench.directory / f"slow{number}").touch()
            proxy.heal()
            eventually(_asks(connection, "select count(*) = 0 from pgworker.job_leases"), pool.log)
    lost = connection.execute("select count(*) from pgworker.job_executions where outcome <> 'succeeded'").fetchone()
    assert lost is not None
    return found, int(lost[0])


@dataclass(frozen=True, slots=True)
class _Silent:
    """Seconds of one silence: until the log speaks of it, until the job that ran has stopped, counted from the last
    renewal that the database knows of; and from the end of it until a new job runs."""

    found: float
    stopped: float
    back: float


def _fall_silent(bench: Bench, connection: Connection[Any], dsn: str, number: int) -> _Silent:
    """Everything is swallowed, or a byte a second goes through; TCP is content."""
    name = f"silent{number}"
    log = bench.directory / f"{name}.log"
    with Proxy.before(dsn) as proxy, start(proxy.dsn(dsn), log, workers=2, lease_ttl=_TTL) as pool:
        pool.wait_for_log("the pool is ready")
        job = jobs.cooperate.using(connection).enqueue(str(bench.directory), name)
        _wait_for_start(bench, name)
        if number % 2:
            proxy.throttle(1)
        else:
            proxy.blackhole()
        began = time.monotonic()
        pool.wait_for_log("event=database_away", within=_SILENCE)
        found = time.monotonic() - began
        eventually(lambda: f"stop {name} 1 " in Path(bench.directory, "ledger").read_text(), pool.log)
        left = connection.execute("select min(expires_at) - clock_timestamp() from pgworker.job_leases").fetchone()
        assert left is not None
        stopped = _TTL - left[0].total_seconds()
        if bench.size > 1:
            time.sleep(max(0.0, began + _SILENCE - time.monotonic()))
        proxy.heal()
        healed = time.monotonic()
        _enqueue(bench, connection, jobs.quick, f"after {name}")
        _wait_for_start(bench, f"after {name}")
        back = time.monotonic() - healed
        eventually(lambda: f"start {name} 2 " in Path(bench.directory, "ledger").read_text(), pool.log)
        cancel_job(connection, job.id)
        eventually(_asks(connection, "select count(*) = 0 from pgworker.job_leases"), pool.log)
    return _Silent(found, stopped, back)


def _worst(seconds: Sequence[float], bound: float) -> tuple[str, bool]:
    return f"{max(seconds):.1f} s at worst", max(seconds) < bound


def _pull_the_cable(bench: Bench, connection: Connection[Any], dsn: str, number: int) -> float:
    """Seconds until the log says so; the job that runs goes on, and runs once."""
    with hosts(dsn, "far") as (far,), _pool(bench, far.dsn, f"far{number}", _LONG_TTL, prefix=far.prefix) as pool:
        _enqueue(bench, connection, jobs.hold, f"cable{number}")
        _wait_for_start(bench, f"cable{number}")
        far.cut()
        began = time.monotonic()
        pool.wait_for_log("event=(database_away|listening_lost)", within=_CABLE)
        found = time.monotonic() - began
        far.heal()
        (bench.directory / f"cable{number}").touch()
        eventually(_asks(connection, "select count(*) = 0 from pgworker.job_leases"), pool.log)
    return found


@contextmanager
def _pool(bench: Bench, dsn: str, name: str, ttl: float, prefix: tuple[str, ...] = ()) -> Iterator[Pool]:
    with start(dsn, bench.directory / f"{name}.log", workers=1, lease_ttl=ttl, prefix=prefix) as pool:
        pool.wait_for_log("the pool is ready")
        yield pool


def _enqueue(bench: Bench, connection: Connection[Any], task: Any, name: str) -> None:
    task.using(connection).enqueue(str(bench.directory), name)


def _wait_for_start(bench: Bench, name: str) -> None:
    ledger = Path(bench.directory, "ledger")
    eventually(lambda: ledger.exists() and f"start {name} " in ledger.read_text(), f"{name} runs")


def _asks(connection: Connection[Any], statement: str, *parameters: Any) -> Callable[[], bool]:
    return lambda: connection.execute(statement.encode(), parameters).fetchone() == (True,)


TRIAL = Trial(
    name="dead_link",
    promise="a dead or silent line is found within 10 s, work stops in its lease, and 500 ms of latency cost no lease",
    unit="times each",
    full=30,
    short=1,
    run=run,
)
