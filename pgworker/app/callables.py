"""What comes of calling something: an answer, something to await, or a generator that has not begun."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pgworker.errors import RegistrationError


def is_async(function: Callable[..., Any]) -> bool:
    """Whether what it returns is to be awaited: `async def`, a partial of one, an object whose `__call__` is one."""
    return any(inspect.iscoroutinefunction(code) for code in _codes(function))


def refuse_generators(function: Callable[..., Any], what: str) -> None:
    """RegistrationError for a function with `yield`: to call it runs nothing of it."""
    if any(inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code) for code in _codes(function)):
        raise RegistrationError(f"{what}: a function with `yield` does nothing when it is called; return a result")


def _codes(function: Callable[..., Any]) -> tuple[Any, Any]:
    """The function itself, and what runs when an object is called."""
    while isinstance(function, functools.partial):
        function = function.func
    return function, getattr(type(function), "__call__", None)  # noqa: B004  not whether it can be called, but by what
