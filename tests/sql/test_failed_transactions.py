"""What a handler's transaction costs when the server refuses a statement in it: its execution, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg

from pgworker import App, Context
from pgworker.app.task import Task
from pgworker.model.state import Outcome
from pgworker.testing import drain

PID = "select pg_backend_pid()"


def test_a_handler_that_goes_on_after_a_failed_statement_leaves_its_connection_to_the_next_job(dsn: str) -> None:
    app = App(dsn)
    seen: list[object] = []

    @app.task(name="goes-on", max_attempts=1)
    def goes_on(ctx: Context) -> None:
        with ctx.transaction() as connection:
            seen.append(connection.execute(PID).fetchone())
            with suppress(psycopg.errors.DivisionByZero):
                connection.execute("select 1 / 0")
            connection.execute(PID)

    @app.task(name="next")
    def next_(ctx: Context) -> None:
        with ctx.transaction() as connection:
            seen.append(connection.execute(PID).fetchone())

    run_both(app, goes_on, next_)
    assert seen[0] == seen[1]


def test_nor_does_one_on_a_loop_cost_it(dsn: str) -> None:
    app = App(dsn)
    seen: list[object] = []

    @app.task(name="goes-on", max_attempts=1)
    async def goes_on(ctx: Context) -> None:
        async with ctx.transaction_async() as connection:
            seen.append(await (await connection.execute(PID)).fetchone())
            with suppress(psycopg.errors.DivisionByZero):
                await connection.execute("select 1 / 0")
            await connection.execute(PID)

    @app.task(name="next")
    async def next_(ctx: Context) -> None:
        async with ctx.transaction_async() as connection:
            seen.append(await (await connection.execute(PID)).fetchone())

    run_both(app, goes_on, next_)
    assert seen[0] == seen[1]


def run_both(app: App, goes_on: Task[..., Any], next_: Task[..., Any]) -> None:
    goes_on.options(priority=9).enqueue()
    next_.enqueue()
    ran = drain(app)
    app.close()
    assert [job.outcome for job in ran] == [Outcome.FAILED, Outcome.SUCCEEDED]
