"""The metrics port under thousands of clients that say nothing, half of something, or read no answer."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
from psycopg import Connection

from tests.acceptance.test_start import fetch
from tests.chaos.trials.figures import in_time, invariants, none_of, timed
from tests.chaos.trials.ground import database, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import eventually, free_port
from tests.security.clients import connections, descriptors
from tests.sql.actors import ask

_JOBS = 2_000
_BEAT = 0.3
_TTL = 3.0
_ENOUGH = 1000  # connections from which on times are judged
_KEPT = 0.6  # of the rate of jobs without them, on a machine on which attacker, server and pool share the CPUs


def run(bench: Bench) -> Sequence[Figure]:
    port = free_port()
    with (
        database(bench) as (dsn, connection),
        running_pool(
            dsn,
            bench.directory / "pool.log",
            lease_ttl=_TTL,
            heartbeat_interval=_BEAT,
            metrics_listen=f"127.0.0.1:{port}",
        ) as pool,
    ):
        eventually(lambda: fetch(port, "/readyz")[0] == 200, "a pool that is ready")
        held = jobs.hold.using(connection).enqueue(str(bench.directory), "held").id
        work(connection, bench, "warm")
        quiet = work(connection, bench, "quiet")
        monitor = pool.monitor
        before = descriptors(monitor), psutil.Process(monitor).memory_info().rss
        with ThreadPoolExecutor(1) as attacker, ExitStack() as clients:
            flood = attacker.submit(clients.enter_context, connections(port, bench.size))
            flooded = work(connection, bench, "flooded")
            opened = flood.result()
            besieged = work(connection, bench, "besieged")
            bench.tell(f"{opened.count:,} connections were made, {opened.refused:,} were not")
            grown = psutil.Process(monitor).memory_info().rss - before[1]
            healthy = fetch(port, "/healthz")[0]
            beaten = age_of_beats(connection)
        left = eventually_few(monitor, before[0])
        (bench.directory / "held").touch()
        done = "select count(*) from pgworker.job_status where status <> 'succeeded'"
        eventually(lambda: ask(connection, done) == [0], "the end of all jobs")
        first = ask(connection, "select outcome::text from pgworker.job_executions where job_id = %s", held)
        same = pool.monitor == monitor
        well = invariants(connection)
    ledger = (bench.directory / "ledger").read_text().splitlines()
    ran = len({line for line in ledger if line.startswith("start ")})
    return [
        Figure("connections made", f"{bench.size:,}", f"{opened.count:,}", opened.count == bench.size),
        _kept(bench, "rate of jobs while they come", quiet, flooded),
        _kept(bench, "rate of jobs with all of them there", quiet, besieged),
        Figure("jobs that ran, each once", f"{4 * _JOBS + 1:,}", f"{ran:,} of {len(ledger):,}", ran == 4 * _JOBS + 1),
        Figure("the lease that was held", "succeeded, once", ", ".join(first), first == ["succeeded"]),
        Figure("/healthz with all of them there", "200", str(healthy), healthy == 200),
        in_time(bench, _ENOUGH, "oldest beat", _TTL, beaten),
        Figure("descriptors afterwards", f"<= {before[0] + 2}", str(left), left <= before[0] + 2),
        Figure("memory of the monitor", "< 64 MiB more", f"{grown >> 20} MiB", grown < 64 << 20),
        Figure("the monitor is the same", "yes", "yes" if same else "no", same),
        well,
        none_of("tracebacks in the log", re.findall("Traceback", pool.log())),
    ]


def _kept(bench: Bench, name: str, quiet: float, loud: float) -> Figure:
    found = f"{quiet / loud:.0%} of {_JOBS / quiet:,.0f}/s"
    return Figure(name, f">= {_KEPT:.0%}", found, timed(bench, _ENOUGH, quiet / loud >= _KEPT))


def work(connection: Connection[tuple[object, ...]], bench: Bench, name: str) -> float:
    """Seconds in which so many jobs have run."""
    begun = time.monotonic()
    requests = [jobs.quick.job(str(bench.directory), f"{name}{number}") for number in range(_JOBS)]
    made = [job.id for job in jobs.app.enqueue_many(requests, connection)]
    ended = "select count(*) = %s from pgworker.job_executions where job_id = any (%s) and outcome = 'succeeded'"
    eventually(lambda: ask(connection, ended, _JOBS, made) == [True], f"the end of {name}", within=120)
    return time.monotonic() - begun


def age_of_beats(connection: Connection[tuple[object, ...]]) -> float:
    oldest = "select extract(epoch from clock_timestamp() - min(beat_at))::float from pgworker.worker_heartbeats"
    return float(ask(connection, f"{oldest} where ended_at is null")[0])


def eventually_few(pid: int, before: int) -> int:
    ends = time.monotonic() + 30
    while (left := descriptors(pid)) > before + 2 and time.monotonic() < ends:
        time.sleep(0.05)
    return left


TRIAL = Trial(
    name="metrics_flood",
    promise="clients of the metrics port, however many, stall no claim, no beat and no renewal",
    unit="connections",
    full=10_000,
    short=300,
    run=run,
)
