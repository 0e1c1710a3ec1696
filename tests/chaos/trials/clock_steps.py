"""The clocks of the database and of a worker's host are set forward and back by an hour while jobs run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tests.chaos.servers import PostgresServer, SteppedClock, binaries_of
from tests.chaos.trials.figures import in_time, told
from tests.chaos.trials.ground import pause, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work

_HOUR = 3600.0
_TTL = 2.0
_SETTINGS: dict[str, Any] = {"app": APP, "workers": 2, "lease_ttl": _TTL, "heartbeat_interval": 0.3}
_PROMISED = 20.0
"""Seconds to pick up what is enqueued after a step: a look from the very beginning of each lane every second or so."""

_ENOUGH = 5
"""Rounds from which on that is judged."""


def run(bench: Bench) -> Sequence[Figure]:
    """`size` rounds of a step forward and back, in an order by the dice, of the database's clock and of a host's."""
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(with_clock=True, binaries=binaries_of(bench.server.pid)))
        work = Work(bench, server.make_database())
        clock = SteppedClock(bench.directory)
        here = running_pool(work.dsn, bench.directory / "log-1", **_SETTINGS)
        there = running_pool(work.dsn, bench.directory / "log-2", prefix=clock.python_prefix, **_SETTINGS)
        pools = [stack.enter_context(pool) for pool in (here, there)]
        stack.callback(clock.forget, pools[1].master)
        waited: list[float] = []
        for number in range(bench.size):
            for step in _order(bench) if number else [_HOUR, -_HOUR]:
                waited += [_step(work, server.step_clock, step, of_database=True), _step(work, clock.step, step)]
                bench.tell(f"after {step:+,.0f} s: {waited[-2]:.2f} s (database), {waited[-1]:.2f} s (host)")
        work.wait_until_done()
        again = len(work.run_again())
        for pool in pools:
            assert pool.process.poll() is None
        return [
            in_time(bench, _ENOUGH, "from a step to work that came after it", _PROMISED, max(waited)),
            told("jobs that ran again", str(again)),
            *work.figures(timed=False),
        ]


def _order(bench: Bench) -> list[float]:
    first = bench.dice.choice([_HOUR, -_HOUR])
    return [first, -first]


def _step(work: Work, step: Callable[[float], None], seconds: float, *, of_database: bool = False) -> float:
    """Step while a job runs in every worker; seconds until jobs that were enqueued after it have run."""
    held = work.enqueue(4, task="hold")
    work.wait_for("start", held)
    if of_database and seconds > 0:
        pause(1.2 * _TTL)  # every monitor may take others' leases by now, if it believes that they are over
    step(seconds)
    began = time.monotonic()
    for key in held[:2]:
        (work.directory / key).touch()
    later = work.enqueue(10)
    work.wait_for("end", later)
    ended = max(noted.at for noted in work.worked() if noted.event == "end" and noted.key in later)
    if of_database:
        pause(began + 1.0 - time.monotonic())
    for key in held[2:]:
        (work.directory / key).touch()
    work.wait_for("end", held)
    return ended - began


TRIAL = Trial(
    name="clock_steps",
    promise="clocks that are set forward or back by an hour lose nothing, charge nobody, and hold up no new work",
    unit="rounds of both clocks",
    full=30,
    short=1,
    run=run,
)
