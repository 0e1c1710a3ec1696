"""An old transaction that keeps every dead row, and reports that read all the while, beside a steady load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from psycopg import IsolationLevel

from pgworker.bench.claimant import Claimant
from pgworker.bench.failure import BenchFailed
from pgworker.bench.ground import Ground
from pgworker.bench.jobs import app, typical
from pgworker.bench.meter import Cost, cost_since, read_meter
from pgworker.bench.quantiles import Quantiles
from pgworker.db.connect import connect

_MOST = 500  # jobs in one claim
_TICK = 0.05  # seconds between two enqueues
_REST = 9  # times as long as a report takes, its reader rests: four are a load, not the whole machine
_WARM_UP = 2.0  # seconds

_REPORT = """
    select task, outcome, count(*), avg(finished_at - started_at), max(length(payload::text))
    from pgworker.jobs join pgworker.job_executions on id = job_id group by task, outcome
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of time, of all of the same load: what was done, and how long the claims took."""

    phase: str
    seconds: float
    offered_per_second: float
    settled_per_second: float
    readers: int
    reports: int
    dead_rows: int
    claim: Quantiles
    cost: Cost


class _Load:
    """So many jobs a second enqueued, claimed and settled, in one thread; what can't be kept up with waits."""

    def __init__(self, ground: Ground, rate: float) -> None:
        self._ground = ground
        self._rate = rate
        self._claimant = Claimant(ground.dsn)
        self.reports = 0
        """Made by readers since the last phase."""

    def run(self, phase: str, seconds: float, readers: int) -> Phase:
        durations: list[float] = []
        sent = settled = self.reports = 0
        before, began = read_meter(self._ground), time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            due = int(elapsed * self._rate) - sent
            app.enqueue_many([typical(0)] * due, self._ground.connection)
            sent += due
            jobs = _MOST
            while jobs == _MOST and time.monotonic() - began < seconds:
                jobs, took = self._claimant.claim(_MOST)
                settled += jobs
                if jobs:
                    durations.append(took)
            self._ground.say(f"{phase}: {elapsed:.0f} of {seconds:.0f} s")
            time.sleep(max(0.0, _TICK - (time.monotonic() - began - elapsed)))
        if not durations:
            raise BenchFailed(f"no claim in {seconds:g} s; give it more time")
        elapsed = time.monotonic() - began
        return Phase(
            phase,
            elapsed,
            self._rate,
            settled / elapsed,
            readers,
            self.reports,
            self._dead_rows(),
            Quantiles.of(durations),
            cost_since(self._ground, settled, before),
        )

    def _dead_rows(self) -> int:
        question = "select n_dead_tup from pg_stat_user_tables where relid = 'pgworker.job_queue'::regclass"
        return int(self._ground.value(question))

    def close(self) -> None:
        self._claimant.close()


def measure_xmin(ground: Ground, rate: float, minutes: float, readers: int) -> list[Phase]:
    """`minutes` pinned, in two halves, after half of that without pin and readers."""
    half = minutes * 30
    with closing(_Load(ground, rate)) as load, ExitStack() as stack:
        load.run("warming up", _WARM_UP, 0)
        phases = [load.run("before", half, 0)]
        pin = stack.enter_context(connect(ground.dsn, application_name="pgworker bench pin", autocommit=False))
        pin.isolation_level = IsolationLevel.REPEATABLE_READ
        pin.execute("select pg_current_xact_id()")
        for number in range(readers):
            stack.enter_context(_reader(ground.dsn, number, load))
        phases += [load.run(f"pinned, {which} half", half, readers) for which in ("first", "second")]
    return phases


@contextmanager
def _reader(dsn: str, number: int, load: _Load) -> Iterator[None]:
    """Read everything in a thread, and rest nine times as long. What goes wrong there is raised at the end."""
    is_over = threading.Event()

    def read() -> None:
        with connect(dsn, application_name=f"pgworker bench report {number}") as connection:
            rest = 0.0
            while not is_over.wait(rest):
                began = time.monotonic()
                connection.execute(_REPORT)
                load.reports += 1
                rest = _REST * (time.monotonic() - began)

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        try:
            yield
        finally:
            is_over.set()
        reading.result()
