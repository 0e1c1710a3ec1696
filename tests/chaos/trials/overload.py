"""Four busy processes beside each CPU, at the same nice: no lease of a living worker is taken, no running job stopped.

A job that lasts for the whole trial, one that holds the GIL in C for three leases, and a stream of short ones: in a
pool with the default lease, and in one with a short lease, whose figures are told without a promise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.chaos.trials import ledgers
from tests.chaos.trials.apps.jobs import effect, hold_the_gil, plain
from tests.chaos.trials.figures import none_of, percentile, told
from tests.chaos.trials.ground import READY, Ground, ground, pause
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process.pool import Pool
from tests.sql.invariants import offences

TIMES = 4
DEFAULT_TTL, SHORT_TTL = 60.0, 5.0
POOLS: dict[str, float] = {"default-lease": DEFAULT_TTL, "short-lease": SHORT_TTL}
SETTINGS: dict[str, Any] = {"workers": 2, "slots": 2}
PATIENCE = 300.0
"""Seconds for what was started to end under such a load."""

_LOST = ("event=lease_lost", "event=result_lost", "event=execution_reclaimed", "event=worker_gone")

_FALSE = """
    select count(*) from pgworker.job_executions as e join pgworker.jobs on id = e.job_id
    where queue = %s and (outcome <> 'succeeded' or e.execution > 1)
"""
_WAITED = """
    select extract(epoch from e.started_at - jobs.created_at)::float8
    from pgworker.job_executions as e join pgworker.jobs on id = e.job_id where queue = %s and task <> 'hold_the_gil'
"""


@contextmanager
def busy_cpus() -> Iterator[int]:
    """So many processes that do nothing but compute."""
    count = TIMES * (os.cpu_count() or 1)
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield count
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def run(bench: Bench) -> Sequence[Figure]:
    with ground(bench) as place:
        long, short = (
            place.pool(ready=False, queues=[queue], lease_ttl=ttl, **SETTINGS) for queue, ttl in POOLS.items()
        )
        with long as default_pool, short as short_pool:
            pools = dict(zip(POOLS, (default_pool, short_pool), strict=True))
            for pool in pools.values():
                pool.wait_for_log(READY)
            with busy_cpus() as count:
                work(bench, place)
                place.wait_until_quiet(within=PATIENCE)
            ledgers.store(place.connection, place.directory, place.enqueued)
            figures = [figure for queue, pool in pools.items() for figure in figures_of(bench, place, queue, pool)]
        wrong = offences(place.connection, ledgers.WRONG)
        return [
            *figures,
            none_of("jobs lost, or run to no end", sum(map(len, wrong.values())), f"{len(place.enqueued):,}"),
            place.offences(),
            told("busy processes", f"{count}"),
        ]


def work(bench: Bench, place: Ground) -> None:
    """For as many seconds as the trial has."""
    ends = time.monotonic() + bench.size
    for queue, ttl in POOLS.items():
        place.enqueue([plain.options(queue=queue).job(float(bench.size))])
        if 3 * ttl < bench.size:
            place.enqueue([hold_the_gil.options(queue=queue).job(3 * ttl)])
    while time.monotonic() < ends:
        place.enqueue(
            [
                task.options(queue=queue).job(bench.dice.choice([0.0, 0.0, 0.05]))
                for queue in POOLS
                for task in (plain, plain, effect)
            ]
        )
        pause(0.25)


def figures_of(bench: Bench, place: Ground, queue: str, pool: Pool) -> list[Figure]:
    ttl = POOLS[queue]
    lines = sum(pool.log().count(lost) for lost in _LOST)
    false = int(place.scalar(_FALSE, queue)) + lines
    name = f"lease of {ttl:g} s: false reclaims in {bench.size} s"
    waits = [float(waited) for (waited,) in place.rows(_WAITED, queue)]
    figures = [
        none_of(name, false) if ttl == DEFAULT_TTL else told(name, f"{false}"),
        told(f"lease of {ttl:g} s: a job waits", f"p50 {percentile(waits, 50):.2f} p99 {percentile(waits, 99):.2f} s"),
    ]
    if 3 * ttl < bench.size:
        starts = place.scalar(
            """select count(*) from chaos.seen join pgworker.jobs on id = job_id
               where kind = 'S' and task = 'hold_the_gil' and queue = %s""",
            queue,
        )
        name = f"the GIL held for {3 * ttl:g} s: runs"
        is_promised = ttl == DEFAULT_TTL
        figures.append(Figure(name, "1" if is_promised else "-", f"{starts}", starts == 1 if is_promised else None))
    return figures


TRIAL = Trial(
    name="overload",
    promise="with four busy processes for each CPU no lease is taken from a worker that lives",
    unit="seconds",
    full=1800,
    short=2,
    run=run,
)
