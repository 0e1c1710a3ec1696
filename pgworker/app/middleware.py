"""Middleware: functions `(job, ctx, call_next)` around every handler of an App, the first registered outermost.

A plain function wraps tasks that are plain functions, an `async def` wraps async ones: a plain one around an async
handler could not wait for it without stopping the loop, an async one around a plain handler has no loop to wait on. For
an app with both kinds a middleware brings its twin of the other kind; one that can't wrap a task is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgworker.app.callables import is_async, refuse_generators
from pgworker.app.context import Context
from pgworker.errors import RegistrationError
from pgworker.model.job import Job

Function = Callable[[Job, Context, Callable[[], Any]], Any]
Call = Callable[[str, Any, Callable[[], Job]], Any]
"""Runs a stored payload: payload, Context or None, what makes the Job."""


@dataclass(frozen=True, slots=True)
class Middleware:
    """One of an App's, in the forms that it has."""

    name: str
    plain: Function | None
    asynchronous: Function | None

    def form(self, task: str, *, of_async: bool) -> Function:
        """The one for this task. RegistrationError if there is none."""
        if of_async and self.asynchronous:
            return self.asynchronous
        if not of_async and self.plain:
            return self.plain
        kinds = ("a plain function", "an async one") if of_async else ("an async function", "a plain one")
        write = "async def" if of_async else "def"
        raise RegistrationError(
            f"the middleware {self.name} is {kinds[0]} and can't wrap {task}, {kinds[1]}: write it once more with "
            f"`{write}`, and register both together, @app.middleware(twin=...)"
        )


def middleware(function: object, twin: object) -> Middleware:
    """One to register, checked. RegistrationError if it isn't of the one form, or its twin is of the same kind."""
    name = getattr(function, "__qualname__", None) or repr(function)[:60]
    forms = [_checked(form) for form in (function, twin) if form is not None]
    plain = [form for form in forms if not is_async(form)]
    asynchronous = [form for form in forms if is_async(form)]
    if len(forms) == 2 and not (plain and asynchronous):
        raise RegistrationError(f"the middleware {name} and its twin must be of two kinds: one `def`, one `async def`")
    return Middleware(name, plain[0] if plain else None, asynchronous[0] if asynchronous else None)


def wrapped(run: Call, layers: Sequence[Function], *, of_async: bool) -> Call:
    """`run` with these around it, the first outermost."""
    layer = _async_layer if of_async else _plain_layer
    for function in reversed(layers):
        run = layer(run, function)
    return run


def _checked(function: object) -> Function:
    told = "write `def f(job, ctx, call_next)` that returns what call_next() returns"
    if not callable(function) or isinstance(function, type):
        raise RegistrationError(f"a middleware is a function, not {function!r:.60}; {told}")
    name = getattr(function, "__qualname__", "of this app")
    refuse_generators(function, f"middleware {name}")
    try:
        inspect.signature(function).bind(None, None, None)
    except (TypeError, ValueError):
        raise RegistrationError(f"the middleware {name} must take three arguments: {told}") from None
    return function


def _plain_layer(run: Call, function: Function) -> Call:
    def around(payload: str, context: Context, make_job: Callable[[], Job]) -> Any:
        once = _Once(function)

        def call_next() -> Any:
            once.enter()
            return run(payload, context, make_job)

        return function(context.job, context, call_next)

    return around


def _async_layer(run: Call, function: Function) -> Call:
    async def around(payload: str, context: Context, make_job: Callable[[], Job]) -> Any:
        once = _Once(function)

        async def call_next() -> Any:
            once.enter()
            return await run(payload, context, make_job)

        awaitable: Awaitable[Any] = function(context.job, context, call_next)
        return await awaitable

    return around


class _Once:
    """A handler runs at most once in an execution."""

    __slots__ = ("_function", "_is_over")

    def __init__(self, function: Function) -> None:
        self._function = function
        self._is_over = False

    def enter(self) -> None:
        if self._is_over:
            name = getattr(self._function, "__qualname__", "of this app")
            raise RuntimeError(
                f"the middleware {name} called call_next() a second time: an execution runs its handler once; "
                "raise Retry() to run the job again"
            )
        self._is_over = True
