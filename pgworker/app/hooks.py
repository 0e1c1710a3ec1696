"""Hooks of a worker process: what it opens once, after the fork, for all its jobs, and closes when it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pgworker.app.callables import is_async, refuse_generators
from pgworker.app.origin import told
from pgworker.errors import ConfigurationError, RegistrationError
from pgworker.observe.logs import fields, logger

Hook = Callable[[Any], object]
"""A function of the worker's state: typed as whoever writes it likes."""

log = logger("app.hooks")


class WorkerHooks:
    """Those of an App."""

    def __init__(self) -> None:
        self._start: list[Hook] = []
        self._stop: list[Hook] = []

    def add_start(self, hook: Hook) -> None:
        self._start.append(_checked(hook, "on_worker_start"))

    def add_stop(self, hook: Hook) -> None:
        self._stop.append(_checked(hook, "on_worker_stop"))

    def start(self) -> SimpleNamespace:
        """Run the start hooks in order on a new namespace. ConfigurationError, one line, at the first that raises."""
        state = SimpleNamespace()
        for hook in self._start:
            try:
                hook(state)
            except (Exception, SystemExit) as error:  # noqa: PERF203  it matters which one
                raise ConfigurationError(f"the start hook {_name(hook)} failed: {told(error)}") from error
        return state

    def stop(self, state: SimpleNamespace) -> None:
        """Run the stop hooks, the last registered first. One that raises is logged and keeps no other from running."""
        for hook in reversed(self._stop):
            try:
                hook(state)
            except (Exception, SystemExit):  # noqa: PERF203  the next is to run
                log.exception(
                    "a stop hook failed; the others run all the same", extra=fields("hook_failed", hook=_name(hook))
                )


def _checked(hook: object, kind: str) -> Hook:
    """RegistrationError unless it is a plain function of one argument."""
    if not callable(hook) or isinstance(hook, type):
        raise RegistrationError(f"@app.{kind} takes a function, not {hook!r:.60}; write `def f(state)`")
    name = _name(hook)
    refuse_generators(hook, f"{kind} {name}")
    if is_async(hook):
        raise RegistrationError(
            f"the hook {name} is async, and no loop runs yet when a worker starts, nor still when it stops: write "
            "`def f(state)`; what must be awaited is for the handlers, or for asyncio.run() in the hook"
        )
    try:
        inspect.signature(hook).bind(None)
    except (TypeError, ValueError):
        raise RegistrationError(f"the hook {name} must take one argument, the worker's state: `def f(state)`") from None
    return hook


def _name(hook: object) -> str:
    return getattr(hook, "__qualname__", None) or repr(hook)[:60]
