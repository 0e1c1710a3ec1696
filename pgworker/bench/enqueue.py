"""How many jobs a second come in by each door, beside the bare statements that none can beat."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import msgspec
from psycopg import Connection
from psycopg.types.json import Jsonb

from pgworker.app.app import App
from pgworker.bench.ground import QUEUE, Ground
from pgworker.bench.jobs import PAYLOAD, app, do_nothing, noop, typical
from pgworker.bench.meter import Cost, cost_since, read_meter
from pgworker.bench.producers import Once, count_in_parallel
from pgworker.control.queues import pause_queues
from pgworker.db.connect import connect_async

BARE_COPY = "bare COPY into both tables"
BARE_INSERT = "bare one-row INSERT"

_BARE_TABLE = "create table bench_rows (like pgworker.jobs including defaults including constraints including indexes)"
_INSERT_ONE = """
    insert into bench_rows (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload)
    values (%s, now(), now(), 1800000, 5, 25, %s, %s, %s)
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

Work = Callable[[], tuple[int, float]]
"""Returns how many jobs came in, in how many seconds."""

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

    def enqueue_jobs() -> int:
        return len(app.enqueue_many([typical(number) for number in range(jobs)], ground.connection))

    def enqueue_arguments() -> int:
        return len(noop.using(ground.connection).enqueue_many(PAYLOAD | {"user_id": n} for n in range(jobs)))

    doors: dict[str, Work] = {
        BARE_COPY: lambda: _timed(lambda: _copy(ground.connection, ids)),
        "task.enqueue_many": lambda: _timed(enqueue_arguments),
        "app.enqueue_many": lambda: _timed(enqueue_jobs),
    }
    return _measure(ground, doors, 1)


def enqueue_one_by_one(ground: Ground, connections: int, seconds: float) -> list[Enqueued]:
    """Each in a transaction of its own, from so many processes, or coroutines, at a time."""
    ground.connection.execute(_BARE_TABLE)
    doors = {
        BARE_INSERT: _in_parallel(ground, connections, seconds, _insert_one),
        "SQL function": _in_parallel(ground, connections, seconds, _call_function),
        "enqueue, using(connection)": _in_parallel(ground, connections, seconds, _enqueue_one),
        "enqueue, the App's own connection": _in_parallel(ground, connections, seconds, _enqueue_by_app(ground.dsn)),
        "enqueue_async, one process": lambda: (asyncio.run(_count_async(ground.dsn, connections, seconds)), seconds),
    }
    cases = _measure(ground, doors, connections)
    ground.connection.execute("drop table bench_rows")
    return cases


def enqueue_beside_a_pool(ground: Ground, connections: int, seconds: float) -> list[Enqueued]:
    """What wake-ups cost who enqueues, beside a pool of one worker that sleeps: for a queue that it does not serve, so
    that nobody is told, and for its own, which is paused, so that nothing but telling and looking comes of it."""
    pause_queues(ground.connection, [QUEUE])
    doors = {
        "enqueue, nobody is told": _in_parallel(ground, connections, seconds, _enqueue_unheard),
        "enqueue, a pool is told": _in_parallel(ground, connections, seconds, _enqueue_one),
    }
    with ground.pools(1, 1):
        time.sleep(_SETTLE)
        return _measure(ground, doors, connections)


def _in_parallel(ground: Ground, connections: int, seconds: float, once: Once) -> Work:
    return lambda: (count_in_parallel(ground.dsn, connections, seconds, once), seconds)


def _measure(ground: Ground, doors: Mapping[str, Work], connections: int) -> list[Enqueued]:
    """One after the other; another one begins in each run, as the machine is seldom the same for long."""
    turns, measured = deque(doors), {}
    turns.rotate(-ground.turn)
    for door in turns:
        ground.say(f"{door}, {connections} connections")
        before = read_meter(ground)
        jobs, seconds = doors[door]()
        spent = cost_since(ground, jobs, before)
        measured[door] = Enqueued(door, connections, jobs, seconds, jobs / seconds, None, spent)
    first, *others = (measured[door] for door in doors)
    return [first, *(replace(case, of_first=case.jobs_per_second / first.jobs_per_second) for case in others)]


def _timed(work: Callable[[], int]) -> tuple[int, float]:
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


# -- one transaction each


def _insert_one(connection: Connection[Any]) -> None:
    connection.execute(_INSERT_ONE, [_new_id(), QUEUE, noop.name, _payload()])


def _call_function(connection: Connection[Any]) -> None:
    connection.execute(_CALL_FUNCTION, [noop.name, _payload(), QUEUE])


def _payload() -> Jsonb:
    return Jsonb(PAYLOAD, dumps=msgspec.json.encode)


def _new_id() -> UUID:
    """Time-ordered, as theirs: the quickest one that is no duplicate."""
    return UUID(int=(time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | 0x2 << 62 | random.getrandbits(62))


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
    now, payload = datetime.now(timezone.utc), _payload()
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
