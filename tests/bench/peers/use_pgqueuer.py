"""pgqueuer, for `python -m tests.bench.compare`."""

from __future__ import annotations

import json
import time
from typing import Any

import asyncpg
import uvloop
from contract import Peer, Ready, measure
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries

_BATCH = 500
_ENQUEUE_BATCH = 1000


async def _queries(dsn: str) -> Queries:
    return Queries.from_asyncpg_connection(await asyncpg.connect(dsn))


def _install(dsn: str) -> None:
    async def install() -> None:
        await (await _queries(dsn)).install()

    uvloop.run(install())


def _enqueue(dsn: str, payloads: list[dict[str, Any]]) -> float:
    async def enqueue() -> float:
        queries = await _queries(dsn)
        began = time.perf_counter()
        for first in range(0, len(payloads), _ENQUEUE_BATCH):
            batch = [json.dumps(payload).encode() for payload in payloads[first : first + _ENQUEUE_BATCH]]
            await queries.enqueue(["noop"] * len(batch), batch, [0] * len(batch))
        return time.perf_counter() - began

    return uvloop.run(enqueue())


def _work(dsn: str, ready: Ready) -> None:
    async def work() -> None:
        pgqueuer = PgQueuer.from_asyncpg_connection(await asyncpg.connect(dsn))

        @pgqueuer.entrypoint("noop")
        async def noop(job: Job) -> None:
            json.loads(job.payload or b"")

        ready()
        await pgqueuer.run(batch_size=_BATCH)

    uvloop.run(work())


if __name__ == "__main__":
    measure(
        Peer(
            package="pgqueuer",
            settings=f"asyncpg, uvloop, batch_size {_BATCH}, enqueue of {_ENQUEUE_BATCH}",
            install=_install,
            enqueue=_enqueue,
            work=_work,
            idle="select not exists (select from pgqueuer)",
            succeeded="select count(*) from pgqueuer_log where status = 'successful'",
        )
    )
