"""The background work of a small web shop that sells for several orgs, as its owner would write it from the README."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pgworker import App, Context, DeadLetter, Job

VERSION = 1
SCHEMA = Path(__file__).with_name("schema.sql").read_text()

app = App(require_org=True)


class Declined(Exception):
    pass


class Bank:
    def pay(self, card: str, key: str) -> str:
        if card == "stolen":
            raise Declined(f"the card {card} is declined")
        time.sleep(0.005)
        return f"{card}-{key}"


@app.on_worker_start
def open_bank(state: SimpleNamespace) -> None:
    state.bank = Bank()


async def noted_async(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
    result = await call_next()
    ctx.logger.info("done by version %d", VERSION)
    return result


@app.middleware(twin=noted_async)
def noted(job: Job, ctx: Context, call_next: Callable[[], Any]) -> Any:
    result = call_next()
    ctx.logger.info("done by version %d", VERSION)
    return result


@app.task(queue="billing", max_attempts=5, timeout=30, discard_on=(Declined,))
def charge(ctx: Context, number: int, card: str = "visa") -> None:
    payment = ctx.state.bank.pay(card, ctx.idempotency_key)
    with ctx.transaction() as conn:
        conn.execute("insert into orders (number, payment) values (%s, %s)", [number, payment])
        mail.using(conn).enqueue("receipt", number)
        next_week = datetime.now(timezone.utc) + timedelta(days=7)
        remind.using(conn).options(run_at=next_week).enqueue(number)


@charge.on_dead_letter
def apologise(ctx: Context, dead: DeadLetter) -> None:
    mail.enqueue(f"sorry: {dead.reason}", dead.payload["number"] if dead.payload else 0)


@app.task(queue="mail")
async def mail(ctx: Context, text: str, number: int) -> None:
    await asyncio.sleep(0.005)
    async with ctx.transaction_async() as conn:
        await conn.execute("insert into mails (number, text) values (%s, %s)", [number, text])


@app.task(queue="mail")
def remind(ctx: Context, number: int) -> list[str]:
    """The orgs whose orders it sees: its own."""
    with ctx.transaction() as conn:
        orgs = [org for (org,) in conn.execute("select distinct org_id from orders").fetchall()]
        conn.execute("insert into mails (number, text) values (%s, %s)", [number, f"how is it, {orgs}?"])
    return orgs


@app.task(queue="billing", timeout=1.5, max_attempts=1)
def count_stars(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)
