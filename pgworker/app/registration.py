"""What can be registered as a task, and under which name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgworker.app.callables import refuse_generators
from pgworker.app.task import Task
from pgworker.errors import InvalidJob, RegistrationError
from pgworker.model.names import check_task


def refuse_what_is_no_function(function: object) -> None:
    """RegistrationError unless it can be a handler by itself."""
    if isinstance(function, Task):
        raise RegistrationError(f"{function.name} is a task already; decorate a function only once")
    if not callable(function) or isinstance(function, type):
        raise RegistrationError(
            f"@app.task takes a function, not {function!r:.60}; options are named, as in @app.task(name=...), "
            "and an object with name and handle(job, ctx) goes to app.register"
        )


def default_name(function: Callable[..., Any]) -> str:
    """The module's name and the function's. RegistrationError if it has none."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name:
        raise RegistrationError(f"{function!r:.60} has no name of its own; pass one with name=...")
    return f"{_module_of_program() if module == '__main__' else module}.{name}"


def _module_of_program() -> str:
    """The name under which a worker imports the program that is running: jobs of `__main__` would wait for ever."""
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(program, "__file__", None)
    return Path(file).stem if file else "__main__"


def check_name(name: object) -> str:
    """The name of a task. RegistrationError if it can't be one."""
    try:
        return check_task(name)
    except InvalidJob as problem:
        where = isinstance(name, str) and ("<locals>" in name or "<lambda>" in name)
        raise RegistrationError(
            f"{name!r} is no name that a worker could find again; pass one with name=..." if where else str(problem)
        ) from None


def check_handler(handler: object) -> str:
    """Its name. RegistrationError unless it has `name` and `handle(job, ctx)`."""
    handle, name = getattr(handler, "handle", None), getattr(handler, "name", None)
    if isinstance(handler, type):
        raise RegistrationError(f"app.register takes an object; write app.register({handler.__qualname__}())")
    if not callable(handle) or not isinstance(name, str):
        raise RegistrationError(
            f"app.register takes an object with a string `name` and a method handle(job, ctx), not {handler!r:.60}"
        )
    refuse_generators(handle, f"task {check_name(name)}")
    try:
        inspect.signature(handle).bind(None, None)
    except TypeError:
        raise RegistrationError(f"task {name}: its method must be handle(self, job, ctx)") from None
    return name
