"""The storage layout as a bare loop: what its statements can do with no product around them.

Jobs and their history in partitioned tables, a narrow queue whose rows are deleted by a claim, one lease for a batch.
Nothing is retried, renewed, reclaimed, logged or cancelled; there is one queue of one priority.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any
from uuid import UUID, uuid4

import msgspec
from psycopg import Connection
from psycopg.types.json import Jsonb, set_json_loads

from pgworker.bench.failure import BenchFailed
from pgworker.bench.jobs import PAYLOAD
from pgworker.db.connect import connect

BATCH = 500

_PATIENCE = 60.0  # seconds for all processes to be connected
_NAME = "pgworker bare loop"
_LOWEST = (datetime(2000, 1, 1, tzinfo=timezone.utc), UUID(int=0))
_TABLES = Path(__file__).with_suffix(".sql").read_bytes()
_COPY_JOBS = "copy bare.jobs (id, queue, task, payload) from stdin (format binary)"
_COPY_QUEUE = "copy bare.job_queue (job_id, queue, run_at, task) from stdin (format binary)"
_PLAN = """set plan_cache_mode = force_generic_plan;
    set enable_hashjoin = off; set enable_mergejoin = off; set enable_seqscan = off"""
_CLAIM = """
    with due as (
        delete from bare.job_queue where ctid = any (array(
            select ctid from bare.job_queue
            where queue = 'default' and priority = 5 and run_at <= now() and task = any (array['email', 'report'])
              and (run_at, job_id) >= (%(floor_at)s::timestamptz, %(floor_id)s::uuid)
            order by run_at, job_id limit %(jobs)s for update skip locked))
        returning job_id, execution, failures, run_at
    ), lease as (
        insert into bare.job_leases (lease_id, worker_id, slots, job_ids, executions, failures, expires_at)
        select %(lease_id)s, %(worker)s, 1, array_agg(job_id), array_agg(execution), array_agg(failures),
               now() + interval '60 s'
        from due having count(*) > 0
    )
    select due.run_at, job.id, due.execution, job.payload,
           job.task, due.failures, job.org_id, job.max_attempts, job.timeout_ms, job.headers
    from due join bare.jobs job on job.id = due.job_id
"""
_SETTLE = """
    with lease as (delete from bare.job_leases where lease_id = %(lease_id)s returning worker_id)
    insert into bare.job_executions (job_id, execution, worker_id, outcome, started_at, finished_at)
    select done.job_id, done.execution, lease.worker_id, 1, now() - done.took_us * interval '1 microsecond', now()
    from lease, unnest(%(ids)s::uuid[], %(executions)s::integer[], %(took_us)s::integer[])
         as done(job_id, execution, took_us)
"""


def run_bare_loop(dsn: str, jobs: int, processes: int) -> tuple[float, float]:
    """Seconds to enqueue and to drain, in an empty database. BenchFailed: not every job is recorded once."""
    with connect(dsn, application_name=_NAME) as connection:
        connection.execute(_TABLES)
        enqueue_seconds = _enqueue(connection, jobs)
        connection.execute("analyze")
        seconds = _drain(dsn, processes)
        [(done,)] = connection.execute("select count(*) from bare.job_executions").fetchall()
    if done != jobs:
        raise BenchFailed(f"the bare loop was given {jobs} jobs and has recorded {done}")
    return enqueue_seconds, seconds


def _enqueue(connection: Connection[Any], jobs: int) -> float:
    stamp, now = time.time_ns() // 1_000_000, datetime.now(timezone.utc)
    ids = [UUID(int=stamp << 80 | 0x7 << 76 | 0x2 << 62 | number) for number in range(jobs)]
    began = time.perf_counter()
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(_COPY_JOBS) as rows:
            rows.set_types(["uuid", "text", "text", "jsonb"])
            for job_id in ids:
                rows.write_row((job_id, "default", "email", Jsonb(PAYLOAD, dumps=msgspec.json.encode)))
        with cursor.copy(_COPY_QUEUE) as rows:
            rows.set_types(["uuid", "text", "timestamptz", "text"])
            for job_id in ids:
                rows.write_row((job_id, "default", now, "email"))
    return time.perf_counter() - began


def _drain(dsn: str, processes: int) -> float:
    """Seconds from the moment that all may claim until the last batch is settled."""
    forking = get_context("fork")
    barrier, ends = forking.Barrier(processes + 1), forking.SimpleQueue()

    def work(worker: int) -> None:
        try:
            with connect(dsn, application_name=_NAME, prepare_threshold=0) as connection:
                connection.execute(_PLAN, prepare=False)
                set_json_loads(msgspec.json.decode, connection)
                barrier.wait(_PATIENCE)
                ends.put(_loop(connection, worker))
        except BaseException:
            barrier.abort()
            raise

    children = [forking.Process(target=work, args=(worker,), daemon=True) for worker in range(processes)]
    for child in children:
        child.start()
    with suppress(BrokenBarrierError):
        barrier.wait(_PATIENCE)
    began = time.perf_counter()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise BenchFailed("a process of the bare loop has failed, see above")
    return max(float(ends.get()) for _ in children) - began


def _loop(connection: Connection[Any], worker: int) -> float:
    """Until nothing is found from the lowest place on; the moment of the last settle."""
    cursor, floor, done, settled = connection.cursor(binary=True), _LOWEST, None, 0.0
    while True:
        lease = {"lease_id": uuid4(), "worker": worker, "jobs": BATCH, "floor_at": floor[0], "floor_id": floor[1]}
        with connection.transaction():
            if done is not None:
                cursor.execute(_SETTLE, done)
            claimed = cursor.execute(_CLAIM, lease).fetchall()
        settled = settled if done is None else time.perf_counter()
        if claimed:
            floor, done = max(row[:2] for row in claimed), _run(lease["lease_id"], claimed)
        elif floor != _LOWEST:
            floor, done = _LOWEST, None
        else:
            return settled


def _run(lease_id: Any, claimed: list[Any]) -> dict[str, Any]:
    took_us = []
    for _, _, _, payload, *_ in claimed:
        began = time.perf_counter_ns()
        _do_nothing(**payload)
        took_us.append((time.perf_counter_ns() - began) // 1000)
    _, ids, executions, *_ = map(list, zip(*claimed, strict=True))
    return {"lease_id": lease_id, "ids": ids, "executions": executions, "took_us": took_us}


def _do_nothing(user_id: int, email: str, template: str, note: str) -> None:
    pass
