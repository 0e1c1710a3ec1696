"""What a task's function takes, read when it is registered: a Context first or not at all, then named arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, get_args, get_origin, get_type_hints

from pgworker.app.callables import is_async, refuse_generators
from pgworker.app.context import Context
from pgworker.errors import RegistrationError

_WRITE: Final = "write `ctx: Context`, as the first parameter"
_NAMES_OF_CONTEXTS: Final = ("ctx", "context")


@dataclass(frozen=True, slots=True)
class Signature:
    """`parameters` are those that a job has arguments for, so without the Context; `hints` are their types by name."""

    takes_context: bool
    is_async: bool
    parameters: tuple[inspect.Parameter, ...]
    hints: Mapping[str, Any]


def read_signature(function: Callable[..., Any], name: str) -> Signature:
    """What `function`, the task `name`, takes. RegistrationError if it can't be called with named arguments."""
    refuse_generators(function, f"task {name}")
    parameters = _parameters(function, name)
    hints = {parameter.name: _hint(parameter, function, name) for parameter in parameters}
    takes_context = bool(parameters) and hints[parameters[0].name] is Context and _is_positional(parameters[0])
    stored = parameters[1:] if takes_context else parameters
    for parameter in stored:
        _refuse_context(parameter, hints[parameter.name], name, takes_context)
        _refuse_kind(parameter, name)
    stored_hints = {parameter.name: hints[parameter.name] for parameter in stored}
    return Signature(takes_context, is_async(function), stored, stored_hints)


def shown(hint: Any) -> str:
    """A type as its user wrote it, more or less."""
    is_class = isinstance(hint, type) and get_origin(hint) is None  # before Python 3.11 list[int] is a type too
    return hint.__qualname__ if is_class else repr(hint)


def _parameters(function: Callable[..., Any], name: str) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:
        raise RegistrationError(f"task {name}: its signature can't be read ({error}); wrap it in a `def`") from None


def resolve_annotation(annotation: object, function: Callable[..., Any]) -> Any:
    """The type that an annotation of this function means; whatever evaluating it raises, for it is any expression."""
    holder = SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, getattr(inspect.unwrap(function), "__globals__", {}), include_extras=True)["it"]


def _hint(parameter: inspect.Parameter, function: Callable[..., Any], name: str) -> Any:
    """The annotation as a type; Any if there is none. Each by itself: a name that is missing elsewhere is no matter."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    try:
        return resolve_annotation(parameter.annotation, function)
    except Exception as error:  # noqa: BLE001  an annotation is any expression
        raise RegistrationError(
            f"task {name}: the annotation {shown(parameter.annotation)} of parameter {parameter.name!r} can't be "
            f"resolved ({type(error).__name__}: {error}); import or define it in the module itself, at run time"
        ) from None


def _refuse_context(parameter: inspect.Parameter, hint: Any, name: str, takes_context: bool) -> None:
    """Whatever looks like a Context and would not get one."""
    advice = None
    if parameter.annotation is parameter.empty:
        if parameter.name in _NAMES_OF_CONTEXTS and parameter.default is parameter.empty:
            advice = f"has no annotation: for the Context {_WRITE}; for an argument of the job, annotate it so"
    elif _mentions_context(hint):
        if takes_context:
            advice = "is a second Context, and an execution has one: remove it"
        elif hint is Context:
            advice = (
                f"is a Context that must be the first parameter: move {parameter.name!r} to the front, before any *"
            )
        elif isinstance(hint, type) and issubclass(hint, Context):
            advice = f"is a {hint.__qualname__}, and workers make nothing but a Context: {_WRITE}"
        else:
            advice = f"is a {shown(hint)}, and every execution has a Context, whole and alone: {_WRITE}"
    if advice:
        raise RegistrationError(f"task {name}: parameter {parameter.name!r} {advice}")


def _mentions_context(hint: Any) -> bool:
    if isinstance(hint, type) and get_origin(hint) is None:
        return issubclass(hint, Context)
    return any(_mentions_context(part) for part in (hint if isinstance(hint, list) else get_args(hint)))


def _refuse_kind(parameter: inspect.Parameter, name: str) -> None:
    advices: dict[Any, str] = {
        parameter.VAR_POSITIONAL: f"*{parameter.name} has no name in a payload; take a list instead",
        parameter.VAR_KEYWORD: f"**{parameter.name} could be anything; name the parameters, or take a dict",
        parameter.POSITIONAL_ONLY: f"{parameter.name!r} can't be passed by name; remove the / behind it",
    }
    if parameter.kind in advices:
        raise RegistrationError(f"task {name}: {advices[parameter.kind]}")


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
