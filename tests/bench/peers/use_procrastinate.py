"""procrastinate, for `python -m tests.bench.compare`."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from contract import Peer, Ready, measure
from procrastinate import App, PsycopgConnector

_CONCURRENCY = 10
_BATCH = 1000


def _app(dsn: str) -> App:
    return App(connector=PsycopgConnector(conninfo=dsn, min_size=_CONCURRENCY, max_size=_CONCURRENCY))


def _install(dsn: str) -> None:
    async def install() -> None:
        async with _app(dsn).open_async() as app:
            await app.schema_manager.apply_schema_async()

    asyncio.run(install())


def _enqueue(dsn: str, payloads: list[dict[str, Any]]) -> float:
    async def enqueue() -> float:
        async with _app(dsn).open_async() as app:
            task = app.configure_task("noop")
            began = time.perf_counter()
            for first in range(0, len(payloads), _BATCH):
                await task.batch_defer_async(*payloads[first : first + _BATCH])
            return time.perf_counter() - began

    return asyncio.run(enqueue())


def _work(dsn: str, ready: Ready) -> None:
    async def work() -> None:
        app = _app(dsn)

        @app.task(name="noop")
        async def noop(user_id: int, email: str, template: str, note: str) -> None:
            pass

        async with app.open_async():
            ready()
            await app.run_worker_async(concurrency=_CONCURRENCY)

    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    asyncio.run(work())


if __name__ == "__main__":
    measure(
        Peer(
            package="procrastinate",
            settings=f"async task, concurrency {_CONCURRENCY}, batch_defer of {_BATCH}",
            install=_install,
            enqueue=_enqueue,
            work=_work,
            idle="select not exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
            succeeded="select count(*) from procrastinate_jobs where status = 'succeeded'",
        )
    )
