"""An app whose handlers and middleware log, in every way that there is, under a name of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

from pgworker import App, Backoff, Context, Job

app = App()
log = logging.getLogger("talk")
_SOON = Backoff(base=0.05, cap=0.1)
_both = threading.Barrier(2, timeout=30)


async def _around_async(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
    log.info("middleware of %s", job.payload["name"])
    return await call_next()


@app.middleware(twin=_around_async)
def around(job: Job, ctx: Context, call_next: Callable[[], Any]) -> Any:
    log.info("middleware of %s", job.payload["name"])
    return call_next()


@app.task
def together(ctx: Context, name: str) -> None:
    """Log while another one runs in this worker too."""
    _both.wait()
    log.info("plain of %s", name, extra={"own": name})
    ctx.logger.info("context of %s", name)
    child = threading.Thread(target=copy_context().run, args=(log.info, "thread of %s", name))
    child.start()
    child.join()
    _both.wait()


_on_loop: set[str] = set()


@app.task
async def together_async(ctx: Context, name: str) -> None:
    """As `together`, on the event loop."""
    _on_loop.add(name)
    while len(_on_loop) < 2:
        await asyncio.sleep(0.01)
    log.info("plain of %s", name, extra={"own": name})
    ctx.logger.info("context of %s", name)
    await asyncio.to_thread(log.info, "thread of %s", name)


@app.task
def hand_on(name: str) -> None:
    """Enqueue another job, then log."""
    forge.enqueue(name)
    log.info("plain of %s", name)


@app.task(max_attempts=2, backoff=_SOON)
def forge(name: str) -> None:
    """Try to write lines of somebody else's."""
    forged = "\n2026-11-21T10:00:00.123456Z INFO  master  drained  event=drained host=x\x1b[2J\r\u2028"
    log.warning(forged)
    print("printed as it is")  # noqa: T201
    raise ValueError(forged)
