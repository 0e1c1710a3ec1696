"""Backends of the pool and of a producer are ended (pg_terminate_backend) twenty times a second."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.figures import told
from tests.chaos.trials.ground import pause, running_pool
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work
from tests.process.pool import eventually

_RATE = 20.0
_SECONDS = 0.005


def run(bench: Bench) -> Sequence[Figure]:
    with PostgresServer(binaries=binaries_of(bench.server.pid)) as server:
        work = Work(bench, server.make_database())
        work.enqueue(100, seconds=_SECONDS)
        with running_pool(work.dsn, bench.directory / "log", app=APP, workers=2, slots=2) as pool:
            eventually(work.ends, "a first job")
            with work.producing(5, batch=20, seconds=_SECONDS), server.terminate_backends(_RATE, bench.dice) as ended:
                pause(bench.size)
            work.wait_until_done()
            assert pool.process.poll() is None
        return [
            told("backends that were ended", f"{len(ended)}, {len(ended) / bench.size:.0f} a second"),
            told("jobs that ran meanwhile", str(len(work.ends()))),
            *work.figures(),
        ]


TRIAL = Trial(
    name="terminated",
    promise="with twenty backends ended each second nothing is lost",
    unit="seconds",
    full=600,
    short=2,
    run=run,
)
