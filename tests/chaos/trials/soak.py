"""A pool at full rate for as long as is asked for: nothing of it grows.

No worker is replaced (no limit on jobs, age or memory), so that a leak can't hide. The private memory (USS) of each
process is looked at all the while, and a line laid through it by least squares, the first third left out: its slope has
to be 0 within its 99 % confidence interval, or below `NOISE`. Days expire and are dropped, partitions are made, and
dead letters discarded: one that nobody discards keeps its checkpoint.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import psutil
import psycopg
from psycopg import Connection

from pgworker.lifecycle.dead_letters import discard_dead_letters
from pgworker.lifecycle.partitions import make_partitions
from pgworker.lifecycle.prune import PruneAction, prune
from tests.chaos.trials.apps.mixed import app
from tests.chaos.trials.figures import invariants, none_of, timed, told
from tests.chaos.trials.ground import PATIENCE, meanwhile, pause, running_pool, scalar, wait_until_quiet
from tests.chaos.trials.paths import BURIED, QUEUES, request, stage
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.sql.actors import Worker, ask
from tests.sql.history import DAY, age, enqueue_ago

NOISE = 2.0
"""MiB an hour: below that nobody tells a leak from an allocator that breathes."""
_LONG = 600  # seconds from which on slopes are judged
_BACKLOG = 1000
_SAMPLES = 200
_SHORTEST = 0.1  # seconds between two looks at all processes
_STEADY = 60  # seconds from which on all have grown as much as they do
_FIRST_DAY = 40  # days ago; each that is dropped is followed by the next
_T99 = 2.6
"""Of Student's distribution, for a hundred samples or more."""
_TABLES = ("job_queue", "job_leases", "job_progress", "worker_heartbeats")


@dataclass(frozen=True, slots=True)
class Look:
    """One process at one time. `uss` in MiB."""

    at: float
    uss: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Line:
    """Of memory: MiB an hour, and half of its confidence interval."""

    slope: float
    error: float

    @property
    def is_flat(self) -> bool:
        return self.slope - self.error <= 0 or self.slope <= NOISE


def run(bench: Bench) -> Sequence[Figure]:
    with stage(bench) as (tenants, enqueuer):
        owner = tenants.owner
        settings: dict[str, Any] = {"app": "tests.chaos.trials.apps.mixed:app", "workers": 2, "slots": 2}
        with running_pool(tenants.dsn, bench.directory / "pool.log", queues=QUEUES, **settings) as pool:
            processes = dict(sorted(pool.processes().items()))
            looks: dict[int, list[Look]] = {pid: [] for pid in processes}
            dropped = sizes = 0
            connections: list[int] = []
            with meanwhile(lambda is_over: _load(is_over, bench, enqueuer)):
                ends = time.monotonic() + bench.size
                while time.monotonic() < ends:
                    pause(max(bench.size / _SAMPLES, _SHORTEST))
                    _look(looks)
                    connections.append(scalar(owner, _CONNECTIONS))
                    sizes = max(sizes, scalar(owner, _SIZE))
                    discard_dead_letters(owner, ask(owner, BURIED))
                    if not dropped or len(connections) % (_SAMPLES // 4) == 1:  # a lock may be in the way of the first
                        dropped += _expire(owner, _FIRST_DAY - dropped)
            wait_until_quiet(owner)
            ran = scalar(owner, "select count(*) from pgworker.job_executions where outcome = 'succeeded'")
            same = list(processes) == sorted(pool.processes())
            pool.send(signal.SIGTERM)
            pool.wait()
        return [
            told("executions that succeeded a second", f"{ran / bench.size:,.0f}"),
            *[_memory(bench, processes[pid], seen) for pid, seen in looks.items()],
            _grown(bench, processes, looks),
            _connections(bench, connections),
            Figure("job_queue and its like at most", "≤ 64 MiB", f"{sizes / 2**20:.1f} MiB", sizes <= 64 << 20),
            Figure("days that expired and were dropped", "> 0", str(dropped), dropped > 0),
            Figure("processes that are the same at the end", "all", "all" if same else "not all", same),
            none_of("what handlers did not expect", owner.execute(_UNEXPECTED).fetchall()),
            invariants(owner),
        ]


_CONNECTIONS = """
    select count(*) from pg_stat_activity where application_name like 'pgworker%%' and datname = current_database()
"""
_SIZE = "select " + " + ".join(f"pg_total_relation_size('pgworker.{table}')" for table in _TABLES)
_UNEXPECTED = """
    select error->>'message' from pgworker.job_executions
    where outcome = 'failed' and error->>'type' <> 'ConnectionError' limit 5
"""


def _load(is_over: Event, bench: Bench, dsn: str) -> None:
    """As much as the pool takes: there is always a backlog, and never a large one."""
    owners = psycopg.conninfo.make_conninfo(dsn, user="postgres")
    with psycopg.connect(dsn, autocommit=True) as connection, psycopg.connect(owners, autocommit=True) as owner:
        while not is_over.is_set():
            if scalar(owner, "select count(*) from pgworker.job_queue") > min(_BACKLOG, 20 * bench.size):
                is_over.wait(0.02)
                continue
            now = scalar(owner, "select clock_timestamp()")
            app.enqueue_many([request(bench.dice, now)[0] for _ in range(100)], connection)


def _look(looks: dict[int, list[Look]]) -> None:
    now = time.monotonic()
    for pid, seen in looks.items():
        process = psutil.Process(pid)
        uss = process.memory_full_info().uss / 2**20
        seen.append(Look(now, uss, process.num_fds(), process.num_threads()))


def _expire(owner: Connection[Any], days: int) -> int:
    """A day of so many days ago with some jobs, all run; made, and dropped: so many. None if a lock was in the way."""
    try:
        ids = enqueue_ago(owner, days, 20, task="expired")
    except psycopg.errors.LockNotAvailable:
        return 0
    worker = Worker(owner)
    assert worker.settle(worker.claim(len(ids), tasks=["expired"]).settlement())
    age(owner, ids, 8)
    make_partitions(owner)
    ends = time.monotonic() + PATIENCE
    while (found := prune(owner, (days - 1) * DAY)) and time.monotonic() < ends:
        if found[0].action is PruneAction.DROPPED:
            return sum(partition.day is not None for partition in found)
    return 0


def _memory(bench: Bench, title: str, seen: Sequence[Look]) -> Figure:
    steady = seen[len(seen) // 3 :]
    line = fit([(look.at, look.uss) for look in steady])
    found = f"{line.slope:+.1f} ± {line.error:.1f} MiB/h at {steady[-1].uss:.0f} MiB"
    return Figure(
        f"memory of {title}", f"0, or < {NOISE:g} MiB/h", found, line.is_flat if bench.size >= _LONG else None
    )


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """The line of least squares through (seconds, MiB)."""
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points) or 1.0
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Line(slope * 3600, _T99 * math.sqrt(rest / max(1, n - 2) / spread) * 3600)


def _grown(bench: Bench, processes: dict[int, str], looks: dict[int, list[Look]]) -> Figure:
    """More at the end than ever in the middle third."""
    grown = []
    for pid, seen in looks.items():
        middle, last = seen[len(seen) // 3 : 2 * len(seen) // 3], seen[-len(seen) // 10 :]
        for what in ("descriptors", "threads"):
            before = max(getattr(look, what) for look in middle)
            after = min(getattr(look, what) for look in last)
            if after > before:
                grown.append(f"{what} of {processes[pid]}: {before} → {after}")
    found = "; ".join(grown) or "none"
    return Figure("descriptors or threads that grew", "none", found, timed(bench, _STEADY, not grown))


def _connections(bench: Bench, seen: Sequence[int]) -> Figure:
    before, after = max(seen[: len(seen) // 2]), min(seen[-len(seen) // 10 :])
    holds = timed(bench, _STEADY, after <= before)
    return Figure("connections at the end, at most before", "no more", f"{after}, {before}", holds)


TRIAL = Trial(
    name="soak",
    promise="an hour at full rate and nothing grows: memory, descriptors, threads, connections, tables",
    unit="seconds",
    full=3600,
    short=3,
    run=run,
)
