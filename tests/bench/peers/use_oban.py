"""oban (oban-py), for `python -m tests.bench.compare`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import uvloop
from contract import Peer, Ready, measure
from oban import Oban, worker
from oban.job import Job
from oban.schema import install
from psycopg.types.json import set_json_dumps, set_json_loads

_LIMIT = 100
_BATCH = 1000


@worker(queue="default")
class Noop:
    async def process(self, job: Job) -> None:
        pass


def _install(dsn: str) -> None:
    async def create() -> None:
        pool = await Oban.create_pool(dsn)
        await install(pool)
        await pool.close()

    uvloop.run(create())


def _enqueue(dsn: str, payloads: list[dict[str, Any]]) -> float:
    async def enqueue() -> float:
        pool = await Oban.create_pool(dsn)
        oban = Oban(pool=pool)
        began = time.perf_counter()
        for first in range(0, len(payloads), _BATCH):
            await oban.enqueue_many(Noop.new(payload) for payload in payloads[first : first + _BATCH])
        seconds = time.perf_counter() - began
        await pool.close()
        return seconds

    _use_orjson()
    return uvloop.run(enqueue())


def _work(dsn: str, ready: Ready) -> None:
    async def work() -> None:
        pool = await Oban.create_pool(dsn)
        async with Oban(pool=pool, queues={"default": {"limit": _LIMIT, "paused": True}}) as oban:
            ready()
            await oban.resume_queue("default")
            await asyncio.Event().wait()

    _use_orjson()
    uvloop.run(work())


def _use_orjson() -> None:
    """As its own command line does."""
    set_json_dumps(orjson.dumps)
    set_json_loads(orjson.loads)


if __name__ == "__main__":
    measure(
        Peer(
            package="oban",
            settings=f"uvloop, orjson, limit {_LIMIT}, enqueue_many of {_BATCH}",
            install=_install,
            enqueue=_enqueue,
            work=_work,
            idle="select not exists (select from oban_jobs where state in ('available', 'executing'))",
            succeeded="select count(*) from oban_jobs where state = 'completed'",
        )
    )
