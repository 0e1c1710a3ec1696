"""PostgreSQL is away for less than the life of a lease, and for longer.

It is stopped in an orderly way: a crash may forget the claims of the last half second, which are committed without a
wait for the disk, and then runs those jobs again.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pgworker.model.lease import lease_margin
from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work
from tests.process.pool import eventually, start

_WORKERS = 4
_JITTER = 1.0
"""Seconds beside its due time that a handler may be asked to stop: the master looks ten times a second."""
_AWAY = re.compile(r"^(\S+Z) .*event=database_away", re.MULTILINE)


def run(bench: Bench) -> Sequence[Figure]:
    """`size` is the life of a lease in seconds; the first outage lasts half of it, the second one and a half."""
    ttl = float(bench.size)
    with PostgresServer(binaries=binaries_of(bench.server.pid)) as server:
        work = Work(bench, server.make_database())
        pool = start(
            work.dsn, bench.directory / "log", app=APP, workers=_WORKERS, lease_ttl=ttl, heartbeat_interval=ttl / 12
        )
        with pool as running:
            short = _short_outage(server, work, ttl)
            long = _long_outage(server, work, ttl)
            lines = _lines_a_second(running.log())
        away = Figure("lines that say so in one second", "1", str(lines), lines <= 1)
        return [*short, *long, away, *work.figures()]


def _short_outage(server: PostgresServer, work: Work, ttl: float) -> list[Figure]:
    """Handlers end while nobody can be told; what they did is settled afterwards, and not done again."""
    keys = work.enqueue(_WORKERS, task="hold")
    work.wait_for("start", keys)
    server.stop()
    for key in keys:
        (work.directory / key).touch()
    work.wait_for("end", keys)
    _pass(ttl / 2)
    server.start()
    work.wait_until_done()
    again = [key for key in work.run_again() if key in keys]
    return [Figure("shorter than a lease: jobs that ran again", "none", str(len(again)), not again)]


def _long_outage(server: PostgresServer, work: Work, ttl: float) -> list[Figure]:
    """Half of the handlers have ended in time; the others are stopped before their leases end."""
    keys = work.enqueue(_WORKERS, task="hold")
    work.wait_for("start", keys)
    in_time, too_long = keys[: _WORKERS // 2], keys[_WORKERS // 2 :]
    server.stop()
    gone = time.monotonic()
    for key in in_time:
        (work.directory / key).touch()
    work.wait_for("end", in_time)
    work.wait_for("stop", too_long)
    stops = [noted.at - gone for noted in work.worked() if noted.event == "stop" and noted.key in too_long]
    _pass(gone + 1.5 * ttl - time.monotonic())
    for key in too_long:
        (work.directory / key).touch()
    server.start()
    work.wait_until_done()
    again = [key for key in work.run_again() if key in in_time]
    latest = ttl - lease_margin(ttl) + _JITTER
    return [
        Figure("longer: finished jobs that ran again", "none", str(len(again)), not again),
        Figure("longer: how others ended first", "lost", _first_outcomes(work, too_long), _are_lost(work, too_long)),
        Figure(
            "longer: seconds to the last that was stopped",
            f"{latest:.1f} s",
            f"{max(stops):.1f} s",
            max(stops) <= latest,
        ),
    ]


def _first_outcomes(work: Work, keys: Sequence[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in Counter(_outcomes_of(work, keys)).items())


def _are_lost(work: Work, keys: Sequence[str]) -> bool:
    return _outcomes_of(work, keys) == ["lost"] * len(keys)


def _outcomes_of(work: Work, keys: Sequence[str]) -> list[Any]:
    jobs = work.produced()
    found = dict(work.ask("select job_id::text, outcome::text from pgworker.job_executions where execution = 1"))
    return [found.get(jobs[key], "nothing") for key in keys]


def _lines_a_second(log: str) -> int:
    """The most lines on the outage that lie within one second."""
    times = [datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() for at in _AWAY.findall(log)]
    return max((sum(first <= at < first + 0.99 for at in times) for first in times), default=0)


def _pass(seconds: float) -> None:
    ends = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > ends, "the end of the outage", max(0.0, seconds) + 60)


TRIAL = Trial(
    name="outage",
    promise="an outage re-runs no job that has finished, charges nobody, and says so once a second at most",
    unit="seconds of a lease",
    full=60,
    short=3,
    run=run,
)
