"""What a handler returned, read back from the JSON that is stored of it, as the type it is annotated to return."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from pgworker.app.signatures import resolve_annotation
from pgworker.errors import InvalidResult
from pgworker.model import pydantic_models
from pgworker.model.payload import decode

R = TypeVar("R", covariant=True)


class Returns(Generic[R]):
    """Reads the results of one handler. Its annotation is looked at when the first one is read."""

    def __init__(self, function: Callable[..., R]) -> None:
        self._function = function
        self._type: object = None
        self._decode: Callable[[str], R] | None = None

    def read(self, text: str | None) -> R:
        """The value: of the annotated type where JSON can be read as one, else plain JSON; None where null is stored.

        InvalidResult if the text doesn't fit the type.
        """
        if text is None or text == "null":
            return cast("R", None)  # what could not be stored became null, and so is what is promised to be None
        if self._decode is None:
            self._type = _return_type(self._function)
            self._decode = _decoder(self._type)
        try:
            return self._decode(text)
        except _NotInJSON:
            return cast("R", decode(text))
        except msgspec.ValidationError as error:
            raise InvalidResult(
                f"the job succeeded, but its result can't be read as {self._type}: {error}; "
                "app.job(id).wait() returns it as plain JSON"
            ) from None


class _NotInJSON(Exception):
    """The type has a class in it that JSON can't be read as."""


def _return_type(function: Callable[..., Any]) -> object:
    """Any if there is no annotation, or one that can't be resolved at run time."""
    plain = inspect.unwrap(function)
    annotations = getattr(plain, "__annotations__", {})
    if "return" not in annotations:
        return Any
    try:
        return resolve_annotation(annotations["return"], plain)
    except Exception:  # noqa: BLE001  an annotation is any expression
        return Any


def _decoder(kind: object) -> Callable[[str], Any]:
    try:
        return msgspec.json.Decoder(kind, dec_hook=_from_json).decode
    except Exception:  # noqa: BLE001  types run their own code, and msgspec that of their annotations
        return decode


def _from_json(kind: type, value: object) -> Any:
    """What msgspec leaves to us: models of pydantic."""
    if not pydantic_models.is_model(kind):
        raise _NotInJSON
    return pydantic_models.load(kind, value)
