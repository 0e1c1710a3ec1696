"""The LISTEN connection: lost, it is back soon, and polls bound what that costs. What telling it costs an enqueue."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from statistics import median
from threading import Barrier, Thread
from typing import Any

import psycopg
from psycopg import Connection

from pgworker.bench.ground import own_database
from pgworker.db.listen import Listener
from tests.chaos.proxy import Proxy
from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.figures import in_time, invariants, told
from tests.chaos.trials.ground import database, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import eventually

_LISTENER = "pgworker monitor listener"
_POLL = 2.0
_BACK = 5.0
_SLACK = 1.0  # seconds that a pickup may take beyond the poll, on a busy machine
_BURST = 20
_WRITERS, _FEW_WRITERS = 400, 60
_ENQUEUES = 60
_CONNECTIONS = 16
_PAIRS = 7
_ENOUGH = 10  # cuts from which on times are judged


def run(bench: Bench) -> Sequence[Figure]:
    """Cut only the listener so often; then many notify at once while others enqueue."""
    with database(bench) as (dsn, connection), Proxy.before(dsn) as proxy:
        through = proxy.dsn(dsn)
        with running_pool(through, bench.directory / "pool.log", workers=2, poll_interval=_POLL):
            back, pickups = _lose_the_listener(bench, connection, proxy)
            calm = _enqueue_rate(bench, dsn)
            with _storm(bench, dsn) as notified:
                stormy = _enqueue_rate(bench, dsn)
            works = _pickup(bench, connection)
        well = invariants(connection)
    kept = _kept_by_telling(bench, bench.server.dsn)
    with PostgresServer(settings={"fsync": "on"}, binaries=binaries_of(bench.server.pid)) as server:
        durably = _kept_by_telling(bench, server.dsn)
    writers = _writers(bench)
    polled = _POLL * 1.1 + _SLACK
    return [
        in_time(bench, _ENOUGH, "until it listens again", _BACK, max(back)),
        in_time(bench, _ENOUGH, "pickup while it does not", polled, max(pickups)),
        told(f"enqueues while {writers} notify", f"{stormy:,.0f}/s, {stormy / calm:.2f} of {calm:,.0f}/s"),
        # Commits that notify go one after the other, at the server: no ratio is promised.
        told(f"enqueues on {_CONNECTIONS} connections that tell a pool, of those that need not", f"{kept:.2f}"),
        told("likewise with commits that are flushed to a disk", f"{durably:.2f}"),
        Figure("notifications of the storm", f"{writers}", f"{notified[0]:,}", notified[0] >= writers),
        in_time(bench, _ENOUGH, "pickup after it", polled, works),
        well,
    ]


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


def _writers(bench: Bench) -> int:
    return _WRITERS if bench.size >= _ENOUGH else _FEW_WRITERS


def _enqueue_rate(bench: Bench, dsn: str) -> float:
    """Enqueues per second of some who do nothing else, each in its own transaction."""
    ready = Barrier(_CONNECTIONS + 1)

    def enqueue() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            task = jobs.quick.using(connection)
            ready.wait(60)
            for number in range(_ENQUEUES):
                task.enqueue(str(bench.directory), f"rate{number}")

    threads = [Thread(target=enqueue, daemon=True) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return _CONNECTIONS * _ENQUEUES / (time.monotonic() - began)


def _kept_by_telling(bench: Bench, server_dsn: str) -> float:
    """The median of some pairs: the rate with a sleeper that listens and has nothing run, by the rate without one."""
    ratios = []
    with own_database(server_dsn) as dsn:
        for _ in range(_PAIRS if bench.size >= _ENOUGH else 1):
            alone = _enqueue_rate(bench, dsn)
            with closing(Listener(dsn)) as sleeper:
                assert sleeper.sleep_lock("default")
                told_of = _enqueue_rate(bench, dsn)
                assert sleeper.read(), "nobody was told"
            ratios.append(told_of / alone)
            bench.tell(f"{told_of:,.0f} of {alone:,.0f}/s")
    return median(ratios)


@contextmanager
def _storm(bench: Bench, dsn: str) -> Iterator[list[int]]:
    """So many sessions, each of which notifies the pool's channel about once a second."""
    notified, writers = [0], _writers(bench)
    over = False

    def notify(sessions: list[Connection[Any]]) -> None:
        while not over or notified[0] < writers:
            for session in sessions:
                session.execute("select pg_notify('pgworker', 'default=1')")
                notified[0] += 1
                time.sleep(_BURST / writers)

    sessions = [psycopg.connect(dsn, autocommit=True) for _ in range(writers)]
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
