"""What a setting's value looks like where people write it: as words of a command line or a variable, and in TOML.

Here is only the form; whether a value can work is for PoolSettings to say. Every mistake is a ConfigurationError whose
sentence names neither setting nor place: whoever reads the layers puts them in front.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from pgworker.config.token import NoToken
from pgworker.errors import ConfigurationError

_TIME: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([smhd]?)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGTkmgt]?)(?:i?[Bb])?")
_UNITS: Final = "BKMGT"
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"0", "false", "no", "off"})
_OFF: Final = "off"


@dataclass(frozen=True, slots=True)
class Kind:
    """One form of value: read from words, taken from TOML, and shown as one would write it."""

    parse: Callable[[str], Any]
    take: Callable[[object], Any]
    show: Callable[[Any], str] = str
    words: tuple[str, ...] = ()
    """All that it may be, if they are few."""


def parse_time(text: str) -> float:
    """Seconds, of a number of them or of one with a unit: 30, 0.5, 30s, 5m, 1h, 2d."""
    parts = _TIME.fullmatch(text.strip())
    if parts is None:
        raise ConfigurationError(f"{text!r} is no time: give seconds, or a number with s, m, h or d, such as 30s or 5m")
    return float(parts[1]) * _SECONDS[parts[2] or "s"]


def parse_size(text: str) -> int:
    """Bytes, of a number of them or of one with a unit, each 1024 of the one before: 512M, 1.5G."""
    parts = _SIZE.fullmatch(text.strip())
    if parts is None:
        raise ConfigurationError(f"{text!r} is no size: give a number with K, M, G or T, such as 512M or 2G")
    return int(float(parts[1]) * 1024.0 ** _UNITS.index(parts[2].upper() or "B"))


def choice(*words: str) -> Kind:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ConfigurationError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return Kind(parse, lambda value: parse(_text(value)), words=words)


def or_off(kind: Kind) -> Kind:
    """`kind`, or `off`, which is None."""
    return replace(
        kind,
        parse=lambda text: None if text == _OFF else kind.parse(text),
        take=lambda value: None if value == _OFF else kind.take(value),
        show=lambda value: _OFF if value is None else kind.show(value),
    )


def or_switch(kind: Kind, when_on: Any) -> Kind:
    """`kind`, or a switch: on means `when_on`, off None."""

    def parse(text: str) -> Any:
        word = text.lower()
        return when_on if word in _YES else None if word in _NO else kind.parse(text)

    def take(value: object) -> Any:
        return (when_on if value else None) if isinstance(value, bool) else kind.take(value)

    return replace(kind, parse=parse, take=take)


def _parse_whole(text: str) -> int:
    if not _WHOLE.fullmatch(text.strip()):
        raise ConfigurationError(f"{text!r} is not a whole number")
    return int(text)


def _parse_switch(text: str) -> bool:
    word = text.lower()
    if word not in _YES | _NO:
        raise ConfigurationError(f"{text!r} is neither on nor off: give 1, true, yes or on, or 0, false, no or off")
    return word in _YES


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type("text in quotes", value)
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type("a whole number", value)
    return value


def _time(value: object) -> float:
    if isinstance(value, str):
        return parse_time(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type('a number of seconds or a time such as "25s"', value)
    return value


def _size(value: object) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type('a number of bytes or a size such as "512M"', value)
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type("true or false", value)
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong_type('a list of texts such as ["first", "second"]', value)
    return tuple(value)


def _token_file(text: str) -> str | NoToken:
    return NoToken.OFF if text == _OFF else text or NoToken.UNSAID


def _show_token_file(value: str | NoToken) -> str:
    return value if isinstance(value, str) else _OFF if value is NoToken.OFF else ""


def _wrong_type(wanted: str, value: object) -> ConfigurationError:
    """Without the value itself: it may be a secret in the wrong line."""
    words = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}
    return ConfigurationError(f"this must be {wanted}, not {words.get(type(value), 'a date or time')}")


def _show_time(value: float) -> str:
    """In the largest unit of which it is two or more, without a rest."""
    for unit in "dhm":
        if value % _SECONDS[unit] == 0 and value >= 2 * _SECONDS[unit]:
            return f"{value / _SECONDS[unit]:g}{unit}"
    return f"{value:.10g}s"


def _show_size(value: int) -> str:
    power = next(power for power in range(len(_UNITS) - 1, -1, -1) if value % 1024**power == 0)
    return f"{value // 1024**power}{_UNITS[power] if power else ''}"


TEXT: Final = Kind(str, _text)
WHOLE: Final = Kind(_parse_whole, _whole)
TIME: Final = Kind(parse_time, _time, _show_time)
SIZE: Final = Kind(parse_size, _size, _show_size)
SWITCH: Final = Kind(_parse_switch, _switch, lambda value: "true" if value else "false")
NAMES: Final = Kind(_parse_names, _names, ", ".join)
TOKEN_FILE: Final = Kind(_token_file, lambda value: _token_file(_text(value)), _show_token_file)
