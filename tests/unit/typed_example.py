"""What users write, checked by mypy as users run it: strict. A wrong call that mypy lets pass is an unused ignore."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from pgworker import App, Backoff, CancelAnswer, Context, Job, JobHandle, JobRequest, Status, Task

app = App()


@app.task(queue="billing", max_attempts=10, timeout=30, backoff=Backoff(cap=3600), discard_on=(LookupError,))
def charge(ctx: Context, order_id: int) -> None:
    ctx.raise_if_cancelled()
    with ctx.transaction() as conn:
        conn.execute("update orders set paid = true where id = %s", [order_id])
        send_receipt.using(conn).enqueue(order_id, copy=True)


@app.task
def send_receipt(order_id: int, *, copy: bool = False) -> str:
    return f"{order_id} {copy}"


@app.task
def refund(ctx: Context, order_id: int) -> float:
    return float(order_id)


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


class Purge:
    name = "purge"

    def handle(self, job: Job, ctx: Context) -> int:
        ctx.logger.info("purging")
        return len(job.payload)


purge = app.register(Purge(), queue="night", should_retry=lambda job, error: job.failures < 3 and error.args != ())


def enqueue(conn: psycopg.Connection, cursor: psycopg.Cursor) -> None:
    assert_type(charge.using(conn).options(priority=9, org_id="acme").enqueue(7), JobHandle[None])
    assert_type(app.enqueue_many([charge.job(i) for i in range(1000)]), list[JobHandle[Any]])
    assert_type(refund.options(priority=1).enqueue_many({"order_id": i} for i in range(3)), list[JobHandle[float]])
    assert_type(fetch.enqueue_many([{"url": "x"}]), list[JobHandle[bytes]])
    refund.enqueue_many([7])  # type: ignore[list-item]
    assert_type(refund.options(timeout=timedelta(minutes=1), run_at=datetime.now(timezone.utc)).job(7), JobRequest)
    assert_type(refund.options(delay=timedelta(minutes=1)).options(delay=5).job(7), JobRequest)
    app.enqueue_many((send_receipt.job(i) for i in range(3)), connection=cursor)
    purge.enqueue(older_than=7)
    charge.enqueue("x")  # type: ignore[arg-type]
    charge.using(cursor).options(priority=1).job(order="x")  # type: ignore[call-arg]
    send_receipt.job(1, True)  # type: ignore[call-arg]
    send_receipt.options(prio=1)  # type: ignore[call-arg]
    send_receipt.using("postgresql://")  # type: ignore[arg-type]
    app.task(retries=3)  # type: ignore[call-overload]


async def enqueue_async(conn: psycopg.AsyncConnection, cursor: psycopg.AsyncCursor) -> None:
    assert_type(await charge.using(conn).enqueue_async(7), JobHandle[None])
    assert_type(await refund.using(cursor).options(queue="slow").enqueue_async(order_id=7), JobHandle[float])
    await charge.enqueue_async("x")  # type: ignore[arg-type]


def wait(session: Session) -> None:
    assert_type(refund.enqueue(7).wait(timedelta(minutes=1)), float)
    assert_type(send_receipt.using(session).options(priority=1).enqueue(7).wait(5), str)
    assert_type(app.job("0199d5a4-6f2b-7c3e-8a1d-2b3c4d5e6f70").wait(), Any)
    assert_type(purge.enqueue().status(), Status)
    assert_type(purge.enqueue().cancel(), CancelAnswer)
    handle: JobHandle[float | None] = refund.enqueue(7)
    handle.wait("a minute")  # type: ignore[arg-type]
    handle.id = handle.id  # type: ignore[misc]


async def wait_async(session: AsyncSession) -> None:
    handle = await refund.using(session).enqueue_async(7)
    assert_type(await handle.wait_async(5), float)
    assert_type(await handle.status_async(), Status)
    assert_type(await (await fetch.enqueue_async("x")).wait_async(), bytes)
    assert_type(fetch.options(priority=1).enqueue("x"), JobHandle[bytes])
    assert_type(await app.enqueue_many_async([refund.job(7)], session), list[JobHandle[Any]])
    assert_type(await fetch.using(session).enqueue_many_async([{"url": "x"}]), list[JobHandle[bytes]])


def call(ctx: Context) -> None:
    charge(ctx, 7)
    assert_type(send_receipt(7), str)
    assert_type(refund(ctx, 7), float)
    refund(ctx, "x")  # type: ignore[call-overload]
    plain: Task[[int], float] = refund
    binds: Callable[[int], JobHandle[float]] = plain.enqueue
    binds(7)
