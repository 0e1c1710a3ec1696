"""PostgreSQL is restarted at once (pg_ctl -m immediate) under full load."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.figures import timed
from tests.chaos.trials.ground import pause, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work, rate_in, recovered_after
from tests.process.pool import eventually

_SECONDS = 0.02  # that a job takes: with four slots 200 a second, whatever else this machine does
_WORKERS = 4
_BEFORE = 1.0
_AFTER = 6.0
_PROMISED = 5.0
_ENOUGH = 5  # restarts from which on that is judged


def run(bench: Bench) -> Sequence[Figure]:
    with PostgresServer(binaries=binaries_of(bench.server.pid)) as server:
        work = Work(bench, server.make_database())
        work.enqueue(100, seconds=_SECONDS)
        with running_pool(work.dsn, bench.directory / "log", app=APP, workers=_WORKERS) as pool:
            with work.producing(20, batch=12, seconds=_SECONDS):
                times = [_restart(bench, server, work) for _ in range(bench.size)]
            work.wait_until_done()
            assert pool.process.poll() is None
        slowest = max((seconds for seconds in times if seconds is not None), default=None)
        late = times.count(None)
        told = f"{slowest:.1f} s" if slowest is not None and not late else f"not within {_AFTER:g} s, {late} times"
        is_soon = not late and (slowest or 0.0) <= _PROMISED
        return [
            Figure("from ready to 95 % of the rate", f"{_PROMISED:g} s", told, timed(bench, _ENOUGH, is_soon)),
            *work.figures(),
        ]


def _restart(bench: Bench, server: PostgresServer, work: Work) -> float | None:
    """Seconds from when the server was ready again to the end of the first second at 95 % of the rate before."""
    began = len(work.ends())
    eventually(lambda: len(work.ends()) > began, "a first job")
    since = time.monotonic()
    pause(_BEFORE)
    before = rate_in(work.ends(), since, since + _BEFORE)
    server.restart("immediate")
    ready = time.monotonic()
    least = 0.95 * before
    eventually(
        lambda: recovered_after(work.ends(), ready, least) is not None or time.monotonic() > ready + _AFTER, "a rate"
    )
    found = recovered_after(work.ends(), ready, least)
    bench.tell(f"{before:.0f} jobs/s before; as many again {found or float('nan'):.1f} s after")
    return found


TRIAL = Trial(
    name="restart",
    promise="after an immediate restart of PostgreSQL 95 % of the rate is back in 5 s, and nothing is lost",
    unit="restarts",
    full=100,
    short=1,
    run=run,
)
