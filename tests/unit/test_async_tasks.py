"""Async tasks: what is one, what a call of it gives, and how it is run."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from pgworker import App, Cancelled, CancelReason, Context, Job, RegistrationError
from tests.unit.executions import Execution

app = App("")


@app.task
async def fetch(ctx: Context, url: str, *, tries: int = 1) -> str:
    await asyncio.sleep(0)
    return f"{url} {tries} {ctx.job.task}"


@app.task
async def bare(url: str) -> str:
    return url


class Fetch:
    name = "fetch"

    async def handle(self, job: Job, ctx: Context) -> tuple[Job, Context]:
        return job, ctx


class Fetcher:
    async def __call__(self, url: str) -> str:
        return url

    async def method(self, url: str) -> str:
        return url


def test_a_call_of_an_async_task_is_the_coroutine_of_its_function() -> None:
    assert asyncio.run(bare("x")) == "x"
    assert asyncio.run(fetch(Execution(app).context, "x", tries=2)) == "x 2 t"


def test_an_async_task_is_awaited_by_invoke_async_with_its_arguments_decoded() -> None:
    assert fetch.is_async
    stored = fetch.job("x", tries=3).payload
    assert asyncio.run(Execution(app).run_async(fetch, stored)) == "x 3 t"
    with pytest.raises(msgspec.ValidationError, match="Expected `str`"):
        asyncio.run(Execution(app).run_async(fetch, '{"url": 1}'))


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (Fetcher(), True),
        (Fetcher().method, True),
        (functools.partial(bare.__wrapped__), True),  # type: ignore[attr-defined]
        (functools.partial(Fetcher()), True),
        (lambda: 1, False),
    ],
)
def test_whatever_returns_an_awaitable_by_its_nature_is_async(function: Callable[..., Any], is_async: bool) -> None:
    task = App("").task(name="task")(function)
    assert task.is_async is is_async
    if is_async:
        assert asyncio.run(Execution(app).run_async(task, '{"url": "x"}')) == "x"


def test_an_object_with_an_async_handle_is_an_async_task() -> None:
    task = App("").register(Fetch())
    execution = Execution(app)
    assert task.is_async
    assert asyncio.run(execution.run_async(task)) == (execution.context.job, execution.context)


def test_an_async_function_with_yield_is_refused() -> None:
    async def pages(url: str) -> AsyncIterator[str]:
        yield url

    with pytest.raises(RegistrationError, match="a function with `yield` does nothing when it is called"):
        App("").task(name="pages")(pages)


def test_a_coroutine_that_nobody_awaits_is_a_failure_that_says_what_to_write() -> None:
    @functools.wraps(bare)
    def decorated(url: str) -> Any:
        return bare(url)

    async def forgetful() -> Any:
        return bare("x")

    hidden = App("").task(name="hidden")(decorated)
    assert not hidden.is_async
    with pytest.raises(TypeError, match=r"hidden returned a coroutine, .* decorates it, `async def`"):
        Execution(app).run(hidden, '{"url": "x"}')
    with pytest.raises(TypeError, match="forgetful returned a coroutine"):
        asyncio.run(Execution(app).run_async(App("").task(name="forgetful")(forgetful)))


def test_waiting_for_a_cancel_leaves_the_loop_to_others() -> None:
    reason = [CancelReason.NONE]
    context = Execution(app).context
    context._cancel_reason = lambda: reason[0]

    async def wait() -> bool:
        waiting = asyncio.create_task(context.wait_cancelled_async(60))
        assert not await context.wait_cancelled_async(0.06)
        reason[0] = CancelReason.CANCELLED
        return await asyncio.wait_for(waiting, 30)

    assert asyncio.run(wait())
    assert context.cancel_seen
    with pytest.raises(Cancelled):
        context.raise_if_cancelled()


@pytest.mark.parametrize("timeout", [-1, "5", None, float("nan")])
def test_a_wait_takes_seconds_or_a_timedelta(timeout: Any) -> None:
    context = Execution(app).context
    with pytest.raises(ValueError, match="timeout must be"):
        context.wait_cancelled(timeout)
    with pytest.raises(ValueError, match="timeout must be"):
        asyncio.run(context.wait_cancelled_async(timeout))
