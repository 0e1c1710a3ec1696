"""A task or thread that a handler has left behind, and the transaction of the job that comes after it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from pgworker import App, Context
from pgworker.model.state import Outcome
from pgworker.testing import drain

ORG = "select pgworker.current_org()"
AMID = "the job has ended, and its slot's connection is another job's"


def test_a_task_that_was_left_behind_does_not_change_the_org_of_the_next_job(dsn: str) -> None:
    app = App(dsn)
    inside, tried = asyncio.Event(), asyncio.Event()
    seen: list[Any] = []
    left: list[asyncio.Task[None]] = []

    @app.task(name="leaves")
    async def leaves(ctx: Context) -> None:
        async def behind() -> None:
            await inside.wait()
            try:
                async with ctx.transaction_async():
                    await asyncio.sleep(0.1)
            except RuntimeError as error:
                seen.append(str(error))
            finally:
                tried.set()

        left.append(asyncio.create_task(behind()))

    @app.task(name="next")
    async def next_(ctx: Context) -> None:
        async with ctx.transaction_async() as connection:
            inside.set()
            await asyncio.wait({asyncio.ensure_future(tried.wait())}, timeout=30)
            seen.append(await (await connection.execute(ORG)).fetchone())

    leaves.options(org_id="acme", priority=9).enqueue()
    next_.options(org_id="bolt").enqueue()
    assert [ran.outcome for ran in drain(app)] == [Outcome.SUCCEEDED] * 2
    assert [str(word)[: len(AMID)] for word in seen] == [AMID, str(("bolt",))]
    app.close()


def test_nor_does_a_thread(dsn: str) -> None:
    app = App(dsn)
    inside = threading.Event()
    seen: list[Any] = []
    left: list[threading.Thread] = []

    @app.task(name="leaves")
    def leaves(ctx: Context) -> None:
        def behind() -> None:
            inside.wait(30)
            try:
                with ctx.transaction():
                    pass
            except RuntimeError as error:
                seen.append(str(error))

        left.append(threading.Thread(target=behind))
        left[0].start()

    @app.task(name="next")
    def next_(ctx: Context) -> None:
        with ctx.transaction() as connection:
            inside.set()
            left[0].join(30)
            seen.append(connection.execute(ORG).fetchone())

    leaves.options(org_id="acme", priority=9).enqueue()
    next_.options(org_id="bolt").enqueue()
    assert [ran.outcome for ran in drain(app)] == [Outcome.SUCCEEDED] * 2
    assert [str(word)[: len(AMID)] for word in seen] == [AMID, str(("bolt",))]
    app.close()
