"""An app to look at: orders are packed, some of them at the second try, and a few never."""

from __future__ import annotations

from pgworker import App, Backoff, Context, Discard

app = App()


@app.task(queue="orders", timeout=60, backoff=Backoff(cap=60))
def pack(ctx: Context, order: int) -> str:
    """Takes up to a second. Of ten orders one fails at first, of a hundred one is cancelled by the customer."""
    if order % 100 == 99:
        raise Discard("the customer has changed his mind")
    if order % 10 == 3 and ctx.job.failures == 0:
        raise ConnectionError("the printer of labels does not answer")
    ctx.wait_cancelled(order % 7 / 6)
    ctx.raise_if_cancelled()
    return f"order {order} is packed"


@app.task
def mail(order: int) -> str:
    """Takes no time."""
    return f"told the customer about order {order}"
