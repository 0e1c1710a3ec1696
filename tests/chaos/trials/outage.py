"""PostgreSQL is away for less than the life of a lease, and for longer.

It is stopped in an orderly way: a crash may forget the claims of the last half second, which are committed without a
wait for the disk, and then runs those jobs again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pgworker.model.lease import lease_margin
from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.figures import in_time, none_of, one_line_a_second, told
from tests.chaos.trials.ground import pause, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work

_WORKERS = 4
_JITTER = 1.0
"""Seconds beside its due time that a handler may be asked to stop: the master looks ten times a second."""
_ENOUGH = 10
"""Seconds of a lease from which on times are judged."""


def run(bench: Bench) -> Sequence[Figure]:
    """`size` is the life of a lease in seconds; the first outage lasts half of it, the second one and a half."""
    ttl = float(bench.size)
    with PostgresServer(binaries=binaries_of(bench.server.pid)) as server:
        work = Work(bench, server.make_database())
        pool = running_pool(
            work.dsn, bench.directory / "log", app=APP, workers=_WORKERS, lease_ttl=ttl, heartbeat_interval=ttl / 12
        )
        with pool as running:
            short = _short_outage(server, work, ttl)
            long = _long_outage(bench, server, work)
            away = one_line_a_second(bench, _ENOUGH, running.log())
        return [*short, *long, away, *work.figures()]


def _short_outage(server: PostgresServer, work: Work, ttl: float) -> list[Figure]:
    """Handlers end while nobody can be told; what they did is settled afterwards, and not done again."""
    keys = work.enqueue(_WORKERS, task="hold")
    work.wait_for("start", keys)
    gone = time.monotonic()
    server.stop()
    for key in keys:
        (work.directory / key).touch()
    work.wait_for("end", keys)
    pause(ttl / 2)
    server.start()
    is_short = time.monotonic() - gone < ttl - lease_margin(ttl)
    work.wait_until_done()
    again = [key for key in work.run_again() if key in keys]
    name = "shorter than a lease: jobs that ran again"
    return [none_of(name, again) if is_short else told(name, f"{len(again)}: a slow machine was away for longer")]


def _long_outage(bench: Bench, server: PostgresServer, work: Work) -> list[Figure]:
    """Half of the handlers have ended in time; the others are stopped before their leases end."""
    ttl = float(bench.size)
    keys = work.enqueue(_WORKERS, task="hold")
    work.wait_for("start", keys)
    done, too_long = keys[: _WORKERS // 2], keys[_WORKERS // 2 :]
    server.stop()
    gone = time.monotonic()
    for key in done:
        (work.directory / key).touch()
    work.wait_for("end", done)
    work.wait_for("stop", too_long)
    stops = [noted.at - gone for noted in work.worked() if noted.event == "stop" and noted.key in too_long]
    pause(gone + 1.5 * ttl - time.monotonic())
    for key in too_long:
        (work.directory / key).touch()
    server.start()
    work.wait_until_done()
    again = [key for key in work.run_again() if key in done]
    latest = ttl - lease_margin(ttl) + _JITTER
    return [
        none_of("longer: finished jobs that ran again", again),
        Figure("longer: how others ended first", "lost", _first_outcomes(work, too_long), _are_lost(work, too_long)),
        in_time(bench, _ENOUGH, "longer: to the last that was stopped", latest, max(stops)),
    ]


def _first_outcomes(work: Work, keys: Sequence[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in Counter(_outcomes_of(work, keys)).items())


def _are_lost(work: Work, keys: Sequence[str]) -> bool:
    return _outcomes_of(work, keys) == ["lost"] * len(keys)


def _outcomes_of(work: Work, keys: Sequence[str]) -> list[Any]:
    jobs = work.produced()
    found = dict(work.ask("select job_id::text, outcome::text from pgworker.job_executions where execution = 1"))
    return [found.get(jobs[key], "nothing") for key in keys]


TRIAL = Trial(
    name="outage",
    promise="an outage re-runs no job that has finished, charges nobody, and says so once a second at most",
    unit="seconds of a lease",
    full=60,
    short=2,
    run=run,
)
