"""An app that has the driver read and write values in other ways, as many do that come from psycopg2, and says so for
the whole process. Imported by pools and programs of their own, never by the tests themselves."""

from __future__ import annotations

import sys
from typing import Any

import psycopg
from psycopg.pq import Format
from psycopg.types.json import JsonbDumper
from psycopg.types.string import TextLoader

from pgworker import App, Context


class BinaryTextLoader(TextLoader):
    format = Format.BINARY


psycopg.adapters.register_loader("uuid", TextLoader)
psycopg.adapters.register_loader("uuid", BinaryTextLoader)
psycopg.adapters.register_loader("bytea", TextLoader)
psycopg.adapters.register_loader("bytea", BinaryTextLoader)
psycopg.adapters.register_dumper(list, JsonbDumper)

app = App()


@app.task(name="hold")
def hold(ctx: Context, seconds: float) -> None:
    """Hold the slot, then look what a query gives, on the connection that is the handler's own."""
    ctx.wait_cancelled(seconds)
    with ctx.transaction() as connection:
        [[found]] = connection.execute("select gen_random_uuid()").fetchall()
        assert type(found) is str


@app.task(name="hold_async")
async def hold_async(ctx: Context, seconds: float) -> None:
    """Likewise."""
    await ctx.wait_cancelled_async(seconds)
    async with ctx.transaction_async() as connection:
        [[found]] = await (await connection.execute("select gen_random_uuid()")).fetchall()
        assert type(found) is str


def main(dsn: str) -> None:
    """Enqueue by every door, wait, cancel; on a connection of one's own too."""
    app.use_dsn(dsn)
    later = hold.options(queue="nobody")
    stored: list[Any] = [later.enqueue(0), *later.enqueue_many({"seconds": 0} for _ in range(1500))]
    stored += app.enqueue_many([later.job(0), later.job(1)])
    with psycopg.connect(dsn) as connection:
        stored += [later.using(connection).enqueue(0), *later.using(connection).enqueue_many([{"seconds": 0}] * 2)]
        stored += app.enqueue_many([later.job(0), later.job(1)], connection)
    assert {job.status().value for job in stored} == {"pending"}
    print(len({job.id for job in stored}), stored[0].cancel().value)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
