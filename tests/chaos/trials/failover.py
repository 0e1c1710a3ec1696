"""The primary is lost under load, and its standby is promoted: synchronous, then asynchronous and lagging, so that
what was settled last is not known to it any more.

A pool and its producer name both servers in their DSN, with target_session_attrs=read-write.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.figures import in_time, told
from tests.chaos.trials.ground import running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work
from tests.process.pool import eventually

_SECONDS = 0.02
_PROMISED = 10.0
_SETTINGS: dict[str, Any] = {"workers": 2, "slots": 2, "lease_ttl": 4.0, "heartbeat_interval": 0.5}
_ENOUGH = 3  # pairs from which on a time is judged


def run(bench: Bench) -> Sequence[Figure]:
    figures: list[Figure] = []
    for number in range(bench.size):
        for synchronous in (True, False) if number % 2 == 0 else (False, True):
            files = bench.directory / f"{number}-{synchronous}"
            files.mkdir()
            figures += _fail_over(bench, files, synchronous=synchronous)
    return figures


def _fail_over(bench: Bench, files: Path, *, synchronous: bool) -> list[Figure]:
    with (
        PostgresServer(binaries=binaries_of(bench.server.pid)) as primary,
        primary.add_standby(synchronous=synchronous) as standby,
    ):
        database = primary.make_database()
        work = Work(bench, _of_both(database, primary, standby), files)
        pool = running_pool(work.dsn, files / "log", app=APP, **_SETTINGS)
        work.enqueue(30, seconds=_SECONDS)
        with pool as running:
            work.wait_until_done()
            held = work.enqueue(4, task="hold")  # two in a lease: one is settled before the end, one after it
            work.wait_for("start", held)
            standby.wait_caught_up(primary)
            if not synchronous:
                _fall_behind(standby)
            _open(work, held[::2])
            with work.producing(10, batch=10, seconds=_SECONDS):
                _wait_until_settled(work, held[::2])
                eventually(lambda: len(work.produced()) > 50, "a tail")
                primary.crash()
                gone = time.monotonic()
                before = set(work.produced())
                standby.promote()
                _open(work, held)
                seconds = _until_work(work, before, gone)
            work.wait_until_done()
            running.wait_for_log("event=database_back")
        return _figures(bench, work, seconds, synchronous)


def _fall_behind(standby: PostgresServer) -> None:
    """From now on the standby hears of nothing that its primary acknowledges."""
    with standby.connect() as connection:
        connection.execute("alter system set primary_conninfo = ''")
        connection.execute("select pg_reload_conf()")
        eventually(
            lambda: connection.execute("select count(*) from pg_stat_wal_receiver").fetchone() == (0,), "no receiver"
        )


def _open(work: Work, keys: Sequence[str]) -> None:
    for key in keys:
        (work.directory / key).touch()


def _wait_until_settled(work: Work, keys: Sequence[str]) -> None:
    jobs = work.produced()
    known = "select count(*) from pgworker.job_executions where job_id = any (%s)"
    with work.connect() as connection:
        asked = [[jobs[key] for key in keys]]
        eventually(lambda: connection.execute(known, asked).fetchone() == (len(keys),), "what is settled in time")


def _until_work(work: Work, before: set[str], gone: float) -> float:
    """Seconds to the end of the first job that was enqueued after the failover."""

    def look() -> list[float]:
        return [noted.at for noted in work.worked() if noted.event == "end" and noted.key not in before]

    return min(eventually(look, "work again", 60)) - gone


def _figures(bench: Bench, work: Work, seconds: float, synchronous: bool) -> list[Figure]:
    kind = "synchronous" if synchronous else "asynchronous"
    jobs = work.produced()
    stored = {str(row[0]) for row in work.ask("select id from pgworker.jobs")}
    tail = sum(job not in stored for job in jobs.values())
    again = [key for key in set(work.run_again()) if jobs.get(key) in stored]
    figures = [
        in_time(bench, _ENOUGH, f"{kind}: to work again", _PROMISED, seconds),
        *work.figures(charged=None, lost=0 if synchronous else tail),
    ]
    if not synchronous:
        figures += [
            told("asynchronous: jobs in the tail that is lost", str(tail)),
            told("asynchronous: jobs that ran again for it", str(len(again))),
        ]
    return figures


def _of_both(dsn: str, *servers: Any) -> str:
    hosts, ports = [server.address for server in servers], [str(server.port) for server in servers]
    return make_conninfo(dsn, host=",".join(hosts), port=",".join(ports), target_session_attrs="read-write")


TRIAL = Trial(
    name="failover",
    promise="a promoted standby has all that was acknowledged, if it is synchronous; work goes on in 10 s",
    unit="pairs of failovers",
    full=20,
    short=1,
    run=run,
)
