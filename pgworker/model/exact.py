"""What a value really is, whatever its class makes of being asked: subclasses of str and int may lie and raise."""

from __future__ import annotations


def text(value: object) -> str | None:
    """The string that `value` is, of no subclass; None if it is none."""
    return str.__str__(value) if issubclass(type(value), str) else None


def number(value: object) -> int | float | None:
    """Likewise the number. A bool is none, though Python counts with it."""
    kind = type(value)
    if issubclass(kind, int) and kind is not bool:
        return int.__int__(value)  # type: ignore[arg-type]  # it is an int
    return float.__float__(value) if issubclass(kind, float) else None  # type: ignore[arg-type]  # it is a float


def type_name(value: object) -> str:
    """The name of its class without the module."""
    try:
        return str(type(value).__qualname__)
    except Exception:  # noqa: BLE001  a metaclass may have made that a property
        return NAMELESS


def full_type_name(value: object) -> str:
    """module.Class, without the module for what is built in, as tracebacks print it."""
    kind = type(value)
    try:
        return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # noqa: BLE001  as above
        return NAMELESS


NAMELESS = "(a type without a name)"
