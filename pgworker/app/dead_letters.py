"""Hooks for jobs that are given up: tasks like others, whose only argument is the dead letter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pgworker.app.arguments import Arguments, typed_arguments
from pgworker.app.options import TaskOptions
from pgworker.app.signatures import Signature, read_signature
from pgworker.errors import RegistrationError
from pgworker.lifecycle.dead_letter_hooks import DeadLetterHook
from pgworker.model.dead_letter import DeadLetter
from pgworker.model.retry import DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT, Backoff

_SUFFIX: Final = ":dead_letter"
_KEY: Final = "dead"
"""Where the dead letter stands in the payload of the hook's job: the database writes it."""


def hook_name(task: str) -> str:
    """RegistrationError for a task that is a hook itself: what is given up there ends there."""
    if task.endswith(_SUFFIX):
        raise RegistrationError(f"{task} is a dead-letter hook itself, and has none of its own: handle the error in it")
    return task + _SUFFIX


def hook_options(queue: str, priority: int) -> TaskOptions:
    """Those of its task where they say when it runs, the defaults where they say how."""
    return TaskOptions(queue, priority, DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT, Backoff(), (), None)


def hook_arguments(function: Any, name: str) -> Arguments:
    """How the hook `function` is called. RegistrationError unless it takes a DeadLetter and nothing else."""
    write = "write `def f(dead: DeadLetter)`, or `def f(ctx: Context, dead: DeadLetter)`"
    if not callable(function) or isinstance(function, type):
        raise RegistrationError(f"on_dead_letter takes a function, not {function!r:.60}; {write}")
    signature = read_signature(function, name)
    if len(signature.parameters) != 1 or next(iter(signature.hints.values())) not in (Any, DeadLetter):
        raise RegistrationError(f"task {name}: a dead-letter hook takes the DeadLetter and nothing else; {write}")
    own = signature.parameters[0]
    stored = Signature(
        signature.takes_context,
        signature.is_async,
        (own.replace(name=_KEY, annotation=DeadLetter),),
        {_KEY: DeadLetter},
    )
    arguments = typed_arguments(stored, name)

    def decode(text: str) -> dict[str, Any]:
        return {own.name: arguments.decode(text)[_KEY]}

    return replace(arguments, decode=decode)


def hook_declaration(task: str, hook: str, options: TaskOptions) -> DeadLetterHook:
    """What the database must know to enqueue it."""
    return DeadLetterHook(task, hook, options.queue, options.priority, options.max_attempts, options.timeout)
