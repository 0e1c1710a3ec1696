"""Middleware: in which order, with what, what it may do, and which tasks it can't wrap."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from pgworker import App, Context, Job, RegistrationError, Retry, Snooze, Task
from tests.unit.executions import Execution

CallNext = Callable[[], Any]


@pytest.fixture
def app() -> App:
    return App("")


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def add(app: App) -> Task[[int, int], int]:
    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    return add


def passing(job: Job, ctx: Context, call_next: CallNext) -> Any:
    return call_next()


def tenfold(job: Job, ctx: Context, call_next: CallNext) -> Any:
    return call_next() * 10


def seven(job: Job, ctx: Context, call_next: CallNext) -> Any:
    return 7


def one() -> int:
    return 1


PAYLOAD = '{"a": 1, "b": 2}'


def test_the_first_registered_is_outermost_whether_the_task_came_before_or_after(app: App, ran: list[str]) -> None:
    def early() -> None:
        ran.append("early")

    def late(ctx: Context) -> None:
        ran.append(ctx.job.task)

    first = app.task(name="early")(early)

    @app.middleware
    def outer(job: Job, ctx: Context, call_next: CallNext) -> Any:
        ran.append(f"outer {job.id.int}")
        result = call_next()
        ran.append("outer ends")
        return result

    @app.middleware
    def inner(job: Job, ctx: Context, call_next: CallNext) -> Any:
        assert job is ctx.job
        ran.append("inner")
        return call_next()

    second = app.task(name="late")(late)
    execution = Execution(app)
    execution.run(first)
    assert ran == ["outer 7", "inner", "early", "outer ends"]
    ran.clear()
    execution.run(second)
    assert ran == ["outer 7", "inner", "t", "outer ends"]
    assert execution.jobs_made == 1, "one Job for all of them"


def test_a_task_needs_a_context_as_soon_as_there_is_middleware(app: App, add: Task[..., Any]) -> None:
    needed = [add.needs_context]
    app.middleware(passing)
    assert [*needed, add.needs_context, app.task(name="later")(one).needs_context] == [False, True, True]


def test_it_may_change_the_result_or_leave_the_handler_out(app: App, add: Task[..., Any]) -> None:
    app.middleware(tenfold)
    assert Execution(app).run(add, PAYLOAD) == 30
    app.middleware(seven)
    assert Execution(app).run(add, PAYLOAD) == 70
    assert add(1, 2) == 3, "a plain call knows of no middleware"


def test_it_sees_and_may_replace_what_the_handler_raises_bad_arguments_too(app: App, add: Task[..., Any]) -> None:
    @app.middleware
    def patient(job: Job, ctx: Context, call_next: CallNext) -> Any:
        try:
            return call_next()
        except msgspec.ValidationError as error:
            raise Retry(str(error), after=60) from error

    with pytest.raises(Retry, match="missing required field"):
        Execution(app).run(add, "{}")


def test_it_may_say_how_the_job_goes_on_before_the_handler_runs(app: App, add: Task[..., Any]) -> None:
    @app.middleware
    def at_night(job: Job, ctx: Context, call_next: CallNext) -> Any:
        raise Snooze(60)

    with pytest.raises(Snooze):
        Execution(app).run(add, PAYLOAD)


def test_a_second_call_of_call_next_is_refused_and_the_next_execution_has_its_own(
    app: App, add: Task[..., Any]
) -> None:
    @app.middleware
    def twice(job: Job, ctx: Context, call_next: CallNext) -> Any:
        call_next()
        return call_next()

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"twice called call_next\(\) a second time.*raise Retry\(\)"):
            Execution(app).run(add, PAYLOAD)


def test_an_async_one_awaits_an_async_handler(app: App, ran: list[str]) -> None:
    @app.middleware
    async def around(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
        ran.append("before")
        result = await call_next()
        ran.append("after")
        return result + 1

    @app.task(name="slow")
    async def slow() -> int:
        await asyncio.sleep(0)
        ran.append("handler")
        return 1

    assert asyncio.run(Execution(app).run_async(slow)) == 2
    assert ran == ["before", "handler", "after"]


def test_an_async_one_calls_call_next_once_and_awaits_it(app: App) -> None:
    async def slow() -> None: ...

    task = app.task(name="slow")(slow)

    @app.middleware
    async def twice(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
        await call_next()
        await call_next()

    with pytest.raises(RuntimeError, match="a second time"):
        asyncio.run(Execution(app).run_async(task))
    forgetful = App("")

    @forgetful.middleware
    async def forgets(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
        return call_next()

    with pytest.raises(TypeError, match="returned a coroutine, which nobody awaits"):
        asyncio.run(Execution(forgetful).run_async(forgetful.task(name="slow")(slow)))


def plain(job: Job, ctx: Context, call_next: CallNext) -> Any:
    return ("plain", call_next())


async def asynchronous(job: Job, ctx: Context, call_next: Callable[[], Awaitable[Any]]) -> Any:
    return ("async", await call_next())


async def slow() -> int:
    return 1


@pytest.mark.parametrize("task_first", [True, False])
@pytest.mark.parametrize(
    ("function", "layer", "sentence"),
    [
        (slow, plain, "the middleware plain is a plain function and can't wrap t, an async one: .*`async def`"),
        (one, asynchronous, "the middleware asynchronous is an async function and can't wrap t, a plain one: .*`def`"),
    ],
)
def test_one_that_cannot_wrap_a_task_is_refused_whichever_comes_first(
    app: App, function: Callable[..., Any], layer: Callable[..., Any], sentence: str, task_first: bool
) -> None:
    def register_task() -> None:
        app.task(name="t")(function)

    def register_layer() -> None:
        app.middleware(layer)

    first, second = (register_task, register_layer) if task_first else (register_layer, register_task)
    first()
    with pytest.raises(RegistrationError, match=sentence + r".*@app.middleware\(twin=...\)"):
        second()
    assert not task_first or Execution(app).run(app.task(name="other")(one)) == 1, "and leaves no trace"


@pytest.mark.parametrize(("function", "twin"), [(plain, asynchronous), (asynchronous, plain)])
def test_a_twin_wraps_the_tasks_of_the_other_kind(
    app: App, add: Task[..., Any], function: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    assert app.middleware(twin=twin)(function) is function
    assert Execution(app).run(add, PAYLOAD) == ("plain", 3)
    assert asyncio.run(Execution(app).run_async(app.task(name="slow")(slow))) == ("async", 1)


def without_context(job: Job, call_next: CallNext) -> Any:
    return call_next()


def test_one_that_can_wrap_only_some_of_the_tasks_wraps_none(app: App, add: Task[..., Any]) -> None:
    app.task(name="slow")(slow)
    with pytest.raises(RegistrationError, match="tenfold is a plain function and can't wrap slow"):
        app.middleware(tenfold)
    assert Execution(app).run(add, PAYLOAD) == 3


def generating(job: Job, ctx: Context, call_next: CallNext) -> Iterator[Any]:
    yield call_next()


@pytest.mark.parametrize(
    ("function", "twin", "sentence"),
    [
        ("timing", None, "a middleware is a function, not 'timing'; write `def f"),
        (App, None, "a middleware is a function"),
        (without_context, None, "must take three arguments: write `def f"),
        (generating, None, "middleware generating: a function with `yield`"),
        (plain, plain, "must be of two kinds: one `def`, one `async def`"),
        (plain, 7, "a middleware is a function, not 7"),
    ],
)
def test_what_is_not_of_the_one_form_is_refused(app: App, function: Any, twin: Any, sentence: str) -> None:
    with pytest.raises(RegistrationError, match=sentence):
        app.middleware(twin=twin)(function)
    assert not app.task(name="t")(lambda: None).needs_context
