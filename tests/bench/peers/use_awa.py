"""awa (awa-pg), for `python -m tests.bench.compare`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from awa import AsyncClient, Job
from contract import Peer, Ready, measure

_MAX_WORKERS = 500

# Its own count of completed jobs asks a view that takes seconds.
_COMPLETED = """
    ((select coalesce(sum(completed_count), 0) from awa.receipt_completion_batches)
     + (select count(*) from awa.done_entries where state = 'completed')
     + (select coalesce(sum(pruned_completed_count), 0) from awa.queue_terminal_rollups))
"""


@dataclass
class Noop:
    user_id: int
    email: str
    template: str
    note: str


def _url(dsn: str) -> str:
    """Its URLs need a host, even where a socket's directory follows."""
    return dsn.replace("@/", "@localhost/")


def _install(dsn: str) -> None:
    async def migrate() -> None:
        async with AsyncClient(_url(dsn)) as client:
            await client.migrate()
            await client.install_queue_storage()  # as the first worker of a fresh database does

    asyncio.run(migrate())


def _enqueue(dsn: str, payloads: list[dict[str, Any]]) -> float:
    async def enqueue() -> float:
        async with AsyncClient(_url(dsn)) as client:
            began = time.perf_counter()
            await client.enqueue_many_copy([Noop(**payload) for payload in payloads], queue="default")
            return time.perf_counter() - began

    return asyncio.run(enqueue())


def _work(dsn: str, ready: Ready) -> None:
    async def work() -> None:
        client = AsyncClient(_url(dsn), max_connections=10)

        @client.task(Noop, queue="default")
        async def noop(job: Job[Noop]) -> None:
            pass

        await client.health_check()
        ready()
        await client.start([{"name": "default", "max_workers": _MAX_WORKERS}])
        await asyncio.Event().wait()

    asyncio.run(work())


if __name__ == "__main__":
    measure(
        Peer(
            package="awa-pg",
            settings=f"max_workers {_MAX_WORKERS}, enqueue_many_copy of all",
            install=_install,
            enqueue=_enqueue,
            work=_work,
            idle=f"select {_COMPLETED} >= %(jobs)s",
            succeeded=f"select {_COMPLETED}",
        )
    )
