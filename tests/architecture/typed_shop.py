"""What users write, checked by mypy as users run it: strict. A wrong call that mypy lets pass is an unused ignore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import psycopg
from pydantic import BaseModel
from typing_extensions import assert_type

from pgworker import App, Backoff, Context, DeadLetter, Job, JobRequest, Org, Task

app = App(require_org=True, org_config=lambda org_id: {"currency": "EUR", "of": org_id})


class Line(NamedTuple):
    sku: str
    pieces: int


class Customer(BaseModel):
    name: str


@dataclass
class Basket:
    customer: Customer
    lines: list[Line]


@app.on_worker_start
def clients(state: SimpleNamespace) -> None:
    state.url = "https://pay.example"


@app.on_worker_stop
def close_clients(state: Any) -> None:
    del state.url


@app.on_worker_start  # type: ignore[type-var]
async def later(state: Any) -> None: ...


async def measure_async(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
    return await call_next()


@app.middleware(twin=measure_async)
def measure(job: Job, ctx: Context, call_next: Callable[[], Any]) -> Any:
    ctx.logger.info("%s starts", job.task)
    return call_next()


@app.middleware  # type: ignore[type-var]
def of_another_form(job: Job, call_next: Callable[[], Any]) -> Any: ...


@app.task(
    queue="billing", max_attempts=10, timeout=30, backoff=Backoff(cap=timedelta(hours=1)), discard_on=(LookupError,)
)
def charge(ctx: Context, order_id: int) -> None:
    ctx.raise_if_cancelled()
    print(ctx.state.url, {"Idempotency-Key": ctx.idempotency_key})  # noqa: T201  stands for a request
    with ctx.transaction() as conn:
        conn.execute("update orders set paid = true where id = %s", [order_id])
        send_receipt.using(conn).enqueue(order_id, copy=True)


@charge.on_dead_letter
def gave_up(dead: DeadLetter) -> str:
    return dead.reason


@app.task
def send_receipt(order_id: int, *, copy: bool = False) -> str:
    return f"{order_id} {copy}"


@app.task
async def fetch(ctx: Context, url: str, tries: int = 3) -> bytes:
    await ctx.wait_cancelled_async(timedelta(seconds=0.1))
    assert_type(ctx.org, Org | None)
    return url.encode() * tries


@fetch.on_dead_letter
async def fetch_elsewhere(ctx: Context, dead: DeadLetter) -> None:
    await fetch(ctx, str(dead.payload), tries=1)


@fetch.on_dead_letter  # type: ignore[arg-type]
def of_a_number(dead: int) -> None: ...


@app.task(queue="night")
async def buy(basket: Basket) -> None: ...


class Purge:
    name = "purge"

    async def handle(self, job: Job, ctx: Context) -> int:
        ctx.logger.info("purging")
        return len(job.payload)


purge = app.register(Purge(), queue="night")


def enqueue(conn: psycopg.Connection) -> None:
    with app.org("acme") as org:
        assert_type(org, Org)
        assert_type(fetch.job("https://…", tries=2), JobRequest)
    charge.using(conn).options(priority=9, org_id="acme").enqueue(7)
    app.enqueue_many([send_receipt.job(i) for i in range(1000)])
    buy.enqueue(Basket(Customer(name="Ada"), [Line("a", 1)]))
    charge.enqueue("7")  # type: ignore[arg-type]
    charge.enqueue()  # type: ignore[call-arg]
    fetch.enqueue(7)  # type: ignore[call-overload]
    fetch.job("https://…", retries=2)  # type: ignore[call-arg]
    buy.enqueue(Customer(name="Ada"))  # type: ignore[call-overload]
    app.org(7)  # type: ignore[arg-type]
    App(require_org="yes")  # type: ignore[arg-type]


async def call(ctx: Context) -> None:
    charge(ctx, 7)
    assert_type(send_receipt(7), str)
    assert_type(await fetch(ctx, "https://…"), bytes)
    await fetch(ctx, 7)  # type: ignore[call-overload]
    fetch_elsewhere.job(None)  # type: ignore[arg-type]
    by_type: Task[[str, int], Coroutine[Any, Any, bytes]] = fetch
    by_call: Callable[[Context, str, int], Awaitable[bytes]] = by_type
    wrong: Task[[str, int], bytes] = fetch  # type: ignore[assignment]
    await by_call(ctx, "https://…", len(wrong.queue))
