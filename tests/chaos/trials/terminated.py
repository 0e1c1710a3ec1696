"""Backends of the pool and of a producer are ended (pg_terminate_backend) twenty times a second."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.chaos.servers import PostgresServer, binaries_of
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.chaos.trials.work import APP, Work
from tests.process.pool import eventually, start

_RATE = 20.0
_SECONDS = 0.005

# A handler whose own connection ends in the middle of its transaction has failed, as with any other error.
_CHARGED = """
    select count(*) from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
    where e.outcome in ('failed', 'timed_out', 'crashed') and jobs.task <> 'effect'
"""


def run(bench: Bench) -> Sequence[Figure]:
    with PostgresServer(binaries=binaries_of(bench.server.pid)) as server:
        work = Work(bench, server.make_database())
        work.enqueue(100, seconds=_SECONDS)
        with start(work.dsn, bench.directory / "log", app=APP, workers=2, slots=2) as pool:
            eventually(work.ends, "a first job")
            with work.producing(5, batch=20, seconds=_SECONDS), server.terminate_backends(_RATE, bench.dice) as ended:
                until = time.monotonic() + bench.size
                eventually(lambda: time.monotonic() > until, "the end", bench.size + 60)
            work.wait_until_done()
            charged = work.ask(_CHARGED)[0][0]
            assert pool.process.poll() is None
        return [
            Figure("backends that were ended", "", f"{len(ended)}, {len(ended) / bench.size:.0f} a second", None),
            Figure("jobs that ran meanwhile", "", str(len(work.ends())), None),
            Figure("jobs charged that had no transaction of their own", "none", str(charged), charged == 0),
            *work.figures(charged=None),
        ]


TRIAL = Trial(
    name="terminated",
    promise="with twenty backends ended each second nothing is lost",
    unit="seconds",
    full=600,
    short=2,
    run=run,
)
