"""How many jobs a second come in by each door, beside the bare statements that none can beat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from pgworker.app.app import App
from pgworker.bench.ground import QUEUE, Ground
from pgworker.bench.jobs import PAYLOAD, app, do_nothing, noop, typical
from pgworker.bench.meter import Cost, cost, read_meter
from pgworker.bench.producers import Once, count_in_parallel
from pgworker.control.queues import pause_queues
from pgworker.db.connect import connect_async

BARE_COPY = "bare COPY into both tables"
BARE_INSERT = "bare one-row INSERT"

_BARE_TABLE = "create table bench_rows (like pgworker.jobs including defaults including constraints including indexes)"
_INSERT_ONE = """
    insert into bench_rows (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload)
    values (pgworker.uuid7(clock_timestamp()), now(), now(), 1800000, 5, 25, %s, %s, %s)
"""
_NEW_IDS = "select array(select pgworker.uuid7(clock_timestamp()) from generate_series(1, %s))"
_COPY_JOBS = """
    copy pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload)
    from stdin (format binary)
"""
_COPY_QUEUE = """
    copy pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task) from stdin (format binary)
"""
_unheard = noop.options(queue="unserved")
_SETTLE = 1.0  # seconds for a pool to fall asleep
_CALL_FUNCTION = "select pgworker.enqueue(%s, %s, queue => %s)"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """One door. `of_first`: its rate by that of the first case of its group in the same run; None for that one."""

    door: str
    connections: int
    jobs: int
    seconds: float
    jobs_per_second: float
    of_first: float | None
    cost: Cost


def enqueue_in_bulk(ground: Ground, jobs: int) -> list[Enqueued]:
    """All of them in one transaction. Ours are made within the time: arguments are bound, checked and encoded there."""
    ids = ground.value(_NEW_IDS, jobs)

    def enqueue_many() -> int:
        return len(app.enqueue_many([typical(number) for number in range(jobs)], ground.connection))

    bare = _measure(ground, BARE_COPY, 1, None, lambda: _timed(lambda: _copy(ground.connection, ids)))
    return [bare, _measure(ground, "enqueue_many", 1, bare, lambda: _timed(enqueue_many))]


def enqueue_one_by_one(ground: Ground, connections: int, seconds: float) -> list[Enqueued]:
    """Each in a transaction of its own, from so many processes, or coroutines, at a time."""
    ground.connection.execute(_BARE_TABLE)
    bare = _one_by_one(ground, BARE_INSERT, connections, seconds, None, _insert_one)
    cases = [bare]
    doors = (
        ("SQL function", _call_function),
        ("enqueue, using(connection)", _enqueue_one),
        ("enqueue, the App's own connection", _enqueue_by_app(ground.dsn)),
    )
    for door, once in doors:
        cases.append(_one_by_one(ground, door, connections, seconds, bare, once))
    cases.append(
        _measure(
            ground,
            "enqueue_async, one process",
            connections,
            bare,
            lambda: (asyncio.run(_count_async(ground.dsn, connections, seconds)), seconds),
        )
    )
    ground.connection.execute("drop table bench_rows")
    return cases


def enqueue_beside_a_pool(ground: Ground, connections: int, seconds: float) -> list[Enqueued]:
    """What wake-ups cost who enqueues, beside a pool of one worker that sleeps: for a queue that it does not serve, so
    that nobody is told, and for its own, which is paused, so that nothing but telling and looking comes of it."""
    pause_queues(ground.connection, [QUEUE])
    with ground.pools(1, 1):
        time.sleep(_SETTLE)
        unheard = _one_by_one(ground, "enqueue, nobody is told", connections, seconds, None, _enqueue_unheard)
        heard = _one_by_one(ground, "enqueue, a pool is told", connections, seconds, unheard, _enqueue_one)
    return [unheard, heard]


def _one_by_one(
    ground: Ground, door: str, connections: int, seconds: float, first: Enqueued | None, once: Once
) -> Enqueued:
    return _measure(
        ground, door, connections, first, lambda: (count_in_parallel(ground.dsn, connections, seconds, once), seconds)
    )


def _measure(
    ground: Ground, door: str, connections: int, first: Enqueued | None, work: Callable[[], tuple[int, float]]
) -> Enqueued:
    """`work` returns how many came in, in how many seconds."""
    ground.say(f"{door}, {connections} connections")
    before = read_meter(ground)
    jobs, seconds = work()
    after = read_meter(ground)
    rate = jobs / seconds
    return Enqueued(
        door,
        connections,
        jobs,
        seconds,
        rate,
        None if first is None else rate / first.jobs_per_second,
        cost(ground, jobs, before, before, after),
    )


def _timed(work: Callable[[], int]) -> tuple[int, float]:
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


# -- one transaction each


def _insert_one(connection: Connection[Any]) -> None:
    connection.execute(_INSERT_ONE, [QUEUE, noop.name, Jsonb(PAYLOAD)])


def _call_function(connection: Connection[Any]) -> None:
    connection.execute(_CALL_FUNCTION, [noop.name, Jsonb(PAYLOAD), QUEUE])


def _enqueue_one(connection: Connection[Any]) -> None:
    noop.using(connection).enqueue(**PAYLOAD)


def _enqueue_unheard(connection: Connection[Any]) -> None:
    _unheard.using(connection).enqueue(**PAYLOAD)


def _enqueue_by_app(dsn: str) -> Once:
    """Each process has an App of its own, which opens and keeps its connections."""
    task = App(dsn).task(name=noop.name)(do_nothing)
    return lambda _connection: task.enqueue(**PAYLOAD)


async def _count_async(dsn: str, connections: int, seconds: float) -> int:
    """How many all coroutines together have enqueued, in one thread."""

    async def produce() -> int:
        async with await connect_async(dsn, application_name="pgworker bench producer") as connection:
            task, done, ends = noop.using(connection), 0, time.monotonic() + seconds
            while time.monotonic() < ends:
                await task.enqueue_async(**PAYLOAD)
                done += 1
            return done

    return sum(await asyncio.gather(*(produce() for _ in range(connections))))


# -- bare statements


def _copy(connection: Connection[Any], ids: Sequence[UUID]) -> int:
    """What an owner of the tables could do, and an enqueuer may not."""
    now, payload = datetime.now(timezone.utc), Jsonb(PAYLOAD)
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(_COPY_JOBS) as rows:
            rows.set_types(["uuid", "timestamptz", "timestamptz", "int8", "int2", "int2", "text", "text", "jsonb"])
            for job_id in ids:
                rows.write_row((job_id, now, now, 1_800_000, 5, 25, QUEUE, noop.name, payload))
        with cursor.copy(_COPY_QUEUE) as rows:
            rows.set_types(["uuid", "timestamptz", "int4", "int2", "int2", "text", "text"])
            for job_id in ids:
                rows.write_row((job_id, now, 1, 5, 0, QUEUE, noop.name))
    return len(ids)
