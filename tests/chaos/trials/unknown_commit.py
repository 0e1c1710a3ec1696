"""Commits whose reply never arrives: what they did is found out, so that nothing happens twice and nothing is lost."""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from pgworker.lifecycle.cancel import cancel_job
from tests.chaos.proxy import Dropped, Proxy
from tests.chaos.trials.figures import none_of, told
from tests.chaos.trials.ground import database, running_pool, scalar, wait_until_quiet
from tests.chaos.trials.trial import Bench, Figure, Trial
from tests.process import jobs
from tests.process.pool import Pool
from tests.process.test_pool import with_effects
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

_ODDS = 0.25

# What a round of statements was for, told by what only that statement says; a trip may be for several.
_VERBS = {
    "settle": "whole as (",
    "claim": "with lane as materialized",
    "enqueue": "pgworker.enqueue",
    "reclaim": "unsettled as materialized",
    "release": "back as materialized",
    "cancel": "with marked as",
    "cancel of what waits": "'cancelled while it waited'",
}
_ENDS = re.compile(r"^commit\b|back as materialized|'cancelled while it waited'", re.IGNORECASE)
"""Statements after which something is committed: those of a transaction of several, and those that are one alone."""

_QUIET = ("I1: an acknowledged enqueue is stored", "I1: at the end nothing waits or runs")
_WITNESSED = {
    name: text for name, text in WITNESSED.items() if name in _QUIET or name.startswith("I2: nothing is settled")
}

_TWICE = """
    select payload->>'name' from pgworker.jobs group by 1 having count(*) > 1
    union all
    select job_id::text from effect group by job_id having count(*) > 1
    union all
    select job_id::text from pgworker.job_executions where outcome = 'succeeded' group by job_id having count(*) > 1
"""
_EFFECTS = """
    select e.job_id, e.execution, effect.execution
    from (select job_id, execution from pgworker.job_executions join pgworker.jobs on jobs.id = job_id
          where jobs.task like 'tests.process.jobs.effect%' and outcome = 'succeeded') as e
    full join effect on effect.job_id = e.job_id and effect.execution = e.execution
    where e.job_id is null or effect.job_id is null
"""


class _Client(Thread):
    """Enqueues and cancels through the proxy, and keeps a ledger of what it was told."""

    def __init__(self, dsn: str, directory: Path, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[UUID] = []
        self.unknown = 0
        self.over = Event()
        self.failure: BaseException | None = None
        self._dsn, self._directory, self._dice = dsn, str(directory), dice
        self._number = 0

    def run(self) -> None:
        try:
            while not self.over.is_set():
                with suppress(psycopg.OperationalError), psycopg.connect(self._dsn, autocommit=True) as connection:
                    while not self.over.wait(0.05):
                        self._act(connection)
        except BaseException as error:  # noqa: BLE001  whoever started it is told
            self.failure = error

    def _act(self, connection: Connection[Any]) -> None:
        if self.acknowledged and self._dice.random() < 0.2:
            cancel_job(connection, self._dice.choice(self.acknowledged[-20:]))
            return
        tasks = (jobs.quick, jobs.effect, jobs.effect_async)
        names = [f"{self._number}.{place}" for place in range(self._dice.randint(1, 6))]
        self._number += 1
        requests = [self._dice.choice(tasks).job(self._directory, name) for name in names]
        try:
            with connection.transaction():
                made = jobs.app.enqueue_many(requests, connection)
        except psycopg.OperationalError:
            self.unknown += 1
            raise
        self.acknowledged += [job.id for job in made]


def run(bench: Bench) -> Sequence[Figure]:
    """So many replies of commits are dropped, of producers, workers and monitors alike, while workers die and drain."""
    with database(bench) as (dsn, plain), Proxy.before(dsn) as proxy:
        connection = with_effects(plain)
        connection.execute(WITNESSES.encode())
        through = proxy.dsn(dsn)
        log = bench.directory / "pool.log"
        settings: dict[str, Any] = {"slots": 2, "poll_interval": 0.1, "heartbeat_interval": 1, "max_batch": 5}
        with running_pool(through, log, workers=3, **settings) as pool:
            client = _Client(through, bench.directory, random.Random(bench.dice.random()))
            proxy.drop_reply(_now_and_then(bench), times=None)
            client.start()
            _disturb(bench, proxy, pool, client)
            client.over.set()
            client.join()
            proxy.heal()
            assert client.failure is None, client.failure
            wait_until_quiet(connection)
        return _judge(bench, connection, client, proxy.dropped)


def _now_and_then(bench: Bench) -> Any:
    dice = random.Random(bench.dice.random())  # asked in the proxy's thread
    return lambda text: _ENDS.search(text) is not None and dice.random() < _ODDS


def _disturb(bench: Bench, proxy: Proxy, pool: Pool, client: _Client) -> None:
    """Until enough is dropped: kill a worker, or have one drain, which gives back what it holds."""
    thousands, seconds = 0, 0.0
    while proxy.counts["reply"] < bench.size:
        assert client.is_alive(), client.failure
        pause = bench.dice.uniform(1, 4)
        client.over.wait(pause)
        seconds += pause
        if workers := pool.workers:
            with suppress(ProcessLookupError):
                os.kill(bench.dice.choice(workers), bench.dice.choice([signal.SIGKILL, signal.SIGTERM]))
        if proxy.counts["reply"] // 1000 > thousands:
            thousands = proxy.counts["reply"] // 1000
            bench.tell(f"{proxy.counts['reply']:,} replies dropped in {seconds:,.0f} s")


def _judge(bench: Bench, connection: Connection[Any], client: _Client, dropped: Sequence[Dropped]) -> list[Figure]:
    with connection.cursor() as cursor:
        cursor.executemany("insert into chaos.enqueued values (%s)", [(job,) for job in client.acknowledged])
    twice = connection.execute(_TWICE.encode()).fetchall()
    wrong = connection.execute(_EFFECTS.encode()).fetchall()
    broken = {**offences(connection, STORED), **offences(connection, _WITNESSED)}
    starts = Counter((bench.directory / "ledger").read_text().splitlines())
    again = [line for line, times in Counter(line.rsplit(" ", 1)[0] for line in starts.elements()).items() if times > 1]
    of_what = Counter(verb for one in dropped if not one.has_failed for verb in _verbs(one))
    total = scalar(connection, "select count(*) from pgworker.jobs")
    return [
        Figure("replies of commits dropped", f"{bench.size:,}", f"{len(dropped):,}", len(dropped) >= bench.size),
        *(told(f"  of a {verb}", f"{times:,}") for verb, times in sorted(of_what.items())),
        told("jobs", f"{total:,}, {client.unknown:,} enqueues unknown"),
        none_of("jobs that happened twice", twice),
        none_of("executions that started twice", again),
        none_of("effects lost, or of no success", wrong),
        none_of("invariants broken, acknowledged jobs lost", broken),
    ]


def _verbs(dropped: Dropped) -> list[str]:
    texts = "\n".join([*dropped.before, *dropped.texts])
    found = [verb for verb, words in _VERBS.items() if words in texts]
    if found == ["settle"] and not any("whole as (" in text for text in dropped.texts):
        return ["settle in ctx.transaction()"]
    return [" and ".join(found)] if found else ["commit of something else"]


TRIAL = Trial(
    name="unknown_commit",
    promise="a commit whose reply is lost does nothing twice, and loses nothing",
    unit="replies dropped",
    full=10_000,
    short=40,
    run=run,
)
