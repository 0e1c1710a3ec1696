"""What may be stored: arguments of a job, result and checkpoint of a handler, the description of an error.

PostgreSQL's jsonb is the judge. It refuses U+0000 and lone surrogates, and has no NaN; so whatever passes here is
accepted there, and a settle never fails because of what a handler returned or raised.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from pgworker.errors import InvalidPayload
from pgworker.model import pydantic_models
from pgworker.model.exact import full_type_name

MAX_PAYLOAD_BYTES = 1 << 20
"""Of JSON. The tables allow 8 MiB of jsonb, which takes up to six times as much: 12 bytes for `0,` in an array."""
MAX_RESULT_BYTES = 64 << 10
MAX_ERROR_BYTES = 16 << 10
MAX_DEPTH = 64
"""Levels of objects and arrays that have something in them, the outermost included."""

_ALLOWED = (
    "use str, int, float, bool, None, lists, dicts, what msgspec encodes (dataclasses, datetimes, UUIDs …), "
    "or pydantic models"
)
_NO_NUMBER = "it has NaN, an infinity or an integer of over 1024 bits, which can't be stored; use None or a string"
_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels or contains itself; flatten it"

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped U+0000, as opposed to an escaped backslash before the text u0000."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a handler returned, as JSON; `json` is None where null is stored, `problem` says why if that loses it."""

    json: bytes | None
    problem: str | None


class _Unstorable(Exception):
    """Why a value can't be stored: the second half of a sentence."""


def encode_payload(arguments: Mapping[str, Any]) -> bytes:
    """The named arguments as a JSON object in UTF-8 that jsonb accepts; InvalidPayload if there is none."""
    named = _named(arguments)
    try:
        return _encode(named, MAX_PAYLOAD_BYTES)
    except _Unstorable as problem:
        raise InvalidPayload(_blame(named, problem)) from None


def encode_result(value: Any) -> Result:
    """What a handler returned, ready to be stored. Never raises: what can't be stored becomes null and a problem."""
    if value is None:
        return _NO_RESULT
    try:
        return Result(_encode(value, MAX_RESULT_BYTES), None)
    except _Unstorable as problem:
        return Result(None, f"the result of type {full_type_name(value)} was not stored: {problem}")


def encode_checkpoint(checkpoint: object) -> bytes:
    """What a handler leaves to the next execution, likewise; InvalidPayload for what can't be stored."""
    if not isinstance(checkpoint, Mapping) or not all(isinstance(name, str) for name in checkpoint):
        raise InvalidPayload("a checkpoint must be a mapping whose keys are strings, such as {'page': 7}")
    try:
        return _encode(dict(checkpoint), MAX_RESULT_BYTES)
    except _Unstorable as problem:
        raise InvalidPayload(f"the checkpoint can't be stored: {problem}") from None


def decode(data: bytes | str) -> Any:
    """The value of a stored JSON text. InvalidPayload for what is no JSON or has numbers outside Python's range."""
    try:
        return _from_json(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidPayload(f"the stored text can't be decoded as JSON: {error}") from None


def describe_error(error: BaseException, *, limit: int = MAX_ERROR_BYTES) -> dict[str, str]:
    """`type`, `message` and `traceback` of an error, at most `limit` bytes of UTF-8 together and fit for jsonb.

    Built without the traceback module's TracebackException, which follows a chain of causes to its end and calls into
    the objects it describes to suggest other names.
    """
    kind = _clip(full_type_name(error), limit // 8)
    message = _clip(_text(error), limit // 4)
    room = limit - len(kind.encode()) - len(message.encode())
    return {"type": kind, "message": message, "traceback": _clip(_traceback(error), room)}


def _named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    if type(arguments) is not dict:
        if not isinstance(arguments, Mapping):
            raise InvalidPayload(f"arguments must be a mapping of names to values, not {full_type_name(arguments)}")
        try:
            arguments = dict(arguments)
        except Exception as error:  # noqa: BLE001  a mapping is code of anybody
            raise InvalidPayload(f"the arguments can't be read: {_text(error)[:500]}") from None
    for name in arguments:
        if not isinstance(name, str):
            raise InvalidPayload(f"names of arguments must be strings, not {full_type_name(name)}")
    return arguments


def _encode(value: Any, limit: int) -> bytes:
    """At most `limit` bytes of JSON that jsonb accepts, or _Unstorable."""
    try:
        if not _is_plain(value, limit) and not _survey(value, limit):
            value = msgspec.to_builtins(value, enc_hook=_plain)
            _survey(value, limit)
        data = _to_json(value)
    except _Unstorable:
        raise
    except UnicodeError:
        raise _Unstorable("it has a lone surrogate, which is no text; decode it with errors='replace'") from None
    except RecursionError:
        raise _Unstorable(_TOO_DEEP) from None
    except Exception as error:  # noqa: BLE001  metaclasses and descriptors of the user's types run in there
        raise _Unstorable(f"{_text(error)[:500]}; {_ALLOWED}") from None
    if len(data) > limit:
        raise _too_large(limit)
    if b"\\u0000" in data and _NUL.search(data):
        raise _Unstorable("it has the character U+0000, which PostgreSQL can't store; remove it")
    return data


def _is_plain(value: Any, limit: int) -> bool:
    """Whether `_survey` need not look, as with most payloads: a few short texts and numbers. Half of its time."""
    if type(value) is not dict:
        return False
    size = 2 * len(value)
    for name, node in value.items():
        kind = type(node)
        if kind is str:
            size += len(node)
        elif kind is int or kind is float:
            if not -_TOO_LARGE < node < _TOO_LARGE:
                return False
        elif kind is not bool and node is not None:
            return False
        size += len(name) if type(name) is str else limit
    return size < limit


def _survey(value: Any, limit: int) -> bool:
    """Refuse what msgspec would not: depth, NaN (it writes null), and size, before 64 MB are copied.

    Walks level by level, so that neither a cycle nor a list in a list in a list, 100,000 times, costs any stack.
    False if there are types that it can't look into.
    """
    level, size, plain = [value], 0, True
    for _ in range(MAX_DEPTH + 1):  # the leaves are one level below the innermost container
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is str or kind is bytes:
                size += len(node)
            elif kind in _CONTAINERS:
                size += 2 * len(node)  # each takes a byte and a comma or bracket at the least
                if size <= limit:
                    below += node
                    below += node.values() if kind is dict else ()
            elif kind is int or kind is float:
                if not -_TOO_LARGE < node < _TOO_LARGE:  # false for NaN too
                    raise _Unstorable(_NO_NUMBER)
            elif kind not in _SCALARS:
                plain = False
            if size > limit:
                raise _too_large(limit)
        if not below:
            return plain
        level = below
    raise _Unstorable(_TOO_DEEP)


def _plain(value: Any) -> Any:
    """What msgspec leaves to us: subclasses of str, int and float (a numpy.float64, a template's safe string), and
    models of pydantic."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if pydantic_models.is_model(type(value)):
        return pydantic_models.dump(value)
    raise TypeError(f"objects of type {full_type_name(value)} can't be encoded")


def _blame(arguments: dict[str, Any], problem: _Unstorable) -> str:
    """Which argument it is, by trying them one at a time; none if only all of them together are too large."""
    for name, value in arguments.items():
        own = _problem({name: value})
        if own is not None:
            return _sentence(name, own)
    return f"the arguments can't be stored: {problem}"


def _problem(argument: dict[str, Any]) -> _Unstorable | None:
    try:
        _encode(argument, MAX_PAYLOAD_BYTES)
    except _Unstorable as problem:
        return problem
    return None


def _sentence(name: str, problem: _Unstorable) -> str:
    return f"argument {str.__str__(name)[:100]!a} can't be stored: {problem}"


def _too_large(limit: int) -> _Unstorable:
    return _Unstorable(
        f"it takes more than the {limit} bytes that are allowed; store it elsewhere and pass a reference"
    )


def _text(error: BaseException) -> str:
    """str(error) as an exact str, whatever its __str__ does."""
    try:
        return str.__str__(str(error))
    except BaseException as second:  # noqa: BLE001  a __str__ that calls sys.exit must not end the worker
        return f"(no message: its __str__ raised {full_type_name(second)})"


def _traceback(error: BaseException) -> str:
    """The error, then what caused it, then that one's cause …, with the innermost frames of each."""
    parts: list[str] = []
    try:
        for heading, link in _chain(error):
            if len(parts) == _MAX_CHAIN:
                return "\n\n".join([*parts, "(more errors are behind these)"])
            frames = "".join(traceback.format_tb(link.__traceback__, limit=-_MAX_FRAMES))
            said = [f"{full_type_name(link)}: {_text(link)}", *getattr(link, "__notes__", ())]
            parts.append(heading + frames + "\n".join(line[:_MAX_MESSAGE] for line in said[:_MAX_NOTES]))
    except Exception as second:  # noqa: BLE001  attributes of the user's errors and loaders of his modules are asked
        parts.append(f"(the rest of the traceback is missing: {full_type_name(second)})")
    return "\n\n".join(parts)


def _chain(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """The error, its causes and the members of groups, nearest first, each once, lazily: there may be 100,000."""
    pending, seen = [("", error)], {id(error)}
    while pending:
        heading, link = pending.pop(0)
        yield heading, link
        for found in _behind(link):
            if id(found[1]) not in seen:
                seen.add(id(found[1]))
                pending.append(found)


def _behind(error: BaseException) -> list[tuple[str, BaseException]]:
    found = []
    if error.__cause__ is not None:
        found.append(("Caused by:\n", error.__cause__))
    elif error.__context__ is not None and not error.__suppress_context__:
        found.append(("Raised while handling:\n", error.__context__))
    members = getattr(error, "exceptions", None)  # of an ExceptionGroup, which Python 3.10 lacks
    if isinstance(members, tuple):
        found += [("In the group:\n", member) for member in members[:_MAX_CHAIN] if isinstance(member, BaseException)]
    return found


def _clip(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8 without U+0000 and surrogates; a cut shows as an ellipsis."""
    clean = text[:limit].replace("\0", "\\0").encode("utf-8", "backslashreplace")
    if len(text) <= limit and len(clean) <= limit:
        return clean.decode()
    return clean[: max(0, limit - 3)].decode("utf-8", "ignore") + "…"


_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})
_SCALARS: Final = frozenset({bool, type(None), datetime, date, time, timedelta, UUID, Decimal})
_TOO_LARGE: Final = 1 << 1024  # the first number past the floats
_MAX_CHAIN: Final = 8
_MAX_FRAMES: Final = 30
_MAX_MESSAGE: Final = 2000
_MAX_NOTES: Final = 6
_NO_RESULT: Final = Result(None, None)
_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode
