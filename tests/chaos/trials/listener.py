"""The LISTEN connection: lost, it is back soon, and polls bound what that costs; a storm of NOTIFY holds up nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Barrier, Thread
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.db.migrate import migrate
from pgworker.db.scratch import scratch_database
from tests.chaos.proxy import Proxy
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import eventually, start
from tests.sql.invariants import STORED, offences

_LISTENER = "pgworker monitor listener"
_POLL = 2.0
_BACK = 5.0
_SLACK = 1.0  # seconds that a pickup may take beyond the poll, on a busy machine
_BURST = 20
_WRITERS = 400
_ENQUEUES = 150
_THREADS = 4


def run(bench: Bench) -> Sequence[Figure]:
    """Cut only the listener so often; then many notify at once while others enqueue."""
    with _database(bench) as (connection, dsn), Proxy.before(dsn) as proxy:
        through = proxy.dsn(dsn)
        with start(through, bench.directory / "pool.log", workers=2, poll_interval=_POLL) as pool:
            pool.wait_for_log("the pool is ready")
            back, pickups = _lose_the_listener(bench, connection, proxy)
            calm = _enqueue_rate(bench, dsn)
            with _storm(bench, dsn) as notified:
                stormy = _enqueue_rate(bench, dsn)
            works = _pickup(bench, connection)
        broken = offences(connection, STORED)
    ratio = stormy / calm
    worst_back, worst_pickup = max(back), max(pickups)
    return [
        Figure("until it listens again", f"< {_BACK:g} s", f"{worst_back:.1f} s at worst", worst_back < _BACK),
        Figure(
            "pickup while it does not",
            f"< {_POLL * 1.1 + _SLACK:g} s",
            f"{worst_pickup:.1f} s at worst",
            worst_pickup < _POLL * 1.1 + _SLACK,
        ),
        Figure(f"enqueues while {_WRITERS} notify", "", f"{stormy:,.0f}/s, {ratio:.2f} of {calm:,.0f}/s", None),
        Figure("notifications of the storm", f"{_WRITERS}", f"{notified[0]:,}", notified[0] >= _WRITERS),
        Figure("pickup after it", f"< {_POLL * 1.1 + _SLACK:g} s", f"{works:.2f} s", works < _POLL * 1.1 + _SLACK),
        Figure("invariants broken", "0", f"{len(broken)} {broken or ''}", not broken),
    ]


@contextmanager
def _database(bench: Bench) -> Iterator[tuple[Connection[Any], str]]:
    with scratch_database(bench.server.dsn, "template0") as dsn:
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            yield connection, dsn


def _lose_the_listener(bench: Bench, connection: Connection[Any], proxy: Proxy) -> tuple[list[float], list[float]]:
    """How long it was away each time, and how long a job of that time waited, in seconds."""
    back, pickups = [], []
    for _ in range(bench.size):
        old = eventually(lambda: _listeners(connection), "a listener")
        assert proxy.cut(_LISTENER, how=bench.dice.choice(["rst", "fin"]))
        cut = time.monotonic()
        pickups.append(_pickup(bench, connection))
        _wait_for_another(connection, old)
        back.append(time.monotonic() - cut)
    return back, pickups


def _wait_for_another(connection: Connection[Any], old: set[int]) -> None:
    eventually(lambda: _listeners(connection) - old, "LISTEN again")


def _listeners(connection: Connection[Any]) -> set[int]:
    """The pids of the backends that have executed the pool's LISTEN."""
    found = "select pid from pg_stat_activity where application_name = %s and datname = current_database()"
    return {pid for (pid,) in connection.execute(f"{found} and query <> ''", [_LISTENER])}


def _pickup(bench: Bench, connection: Connection[Any]) -> float:
    """Seconds from an enqueue to the first instruction of its handler, as its ledger says."""
    name = f"{time.monotonic_ns()}"
    began = time.monotonic()
    jobs.quick.using(connection).enqueue(str(bench.directory), name)
    ledger = bench.directory / "ledger"
    eventually(lambda: ledger.exists() and f"start {name} " in ledger.read_text(), "the job runs")
    return time.monotonic() - began


def _enqueue_rate(bench: Bench, dsn: str) -> float:
    """Enqueues per second of some who do nothing else, each in its own transaction."""
    ready = Barrier(_THREADS + 1)

    def enqueue() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            task = jobs.quick.using(connection)
            ready.wait(60)
            for number in range(_ENQUEUES):
                task.enqueue(str(bench.directory), f"rate{number}")

    threads = [Thread(target=enqueue, daemon=True) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return _THREADS * _ENQUEUES / (time.monotonic() - began)


@contextmanager
def _storm(bench: Bench, dsn: str) -> Iterator[list[int]]:
    """So many sessions, each of which notifies the pool's channel about once a second."""
    notified = [0]
    over = False

    def notify(sessions: list[Connection[Any]]) -> None:
        while not over or notified[0] < _WRITERS:
            for session in sessions:
                session.execute("select pg_notify('pgworker', 'default=1')")
                notified[0] += 1
                time.sleep(_BURST / _WRITERS)

    sessions = [psycopg.connect(dsn, autocommit=True) for _ in range(_WRITERS)]
    try:
        threads = [Thread(target=notify, args=(sessions[n::_BURST],), daemon=True) for n in range(_BURST)]
        for thread in threads:
            thread.start()
        yield notified
        over = True
        for thread in threads:
            thread.join()
    finally:
        for session in sessions:
            session.close()


TRIAL = Trial(
    name="listener",
    promise="without its LISTEN a pool polls, and listens again within 5 s",
    unit="times the listener is cut",
    full=50,
    short=2,
    run=run,
    server_options=(("max_connections", "500"),),
)
