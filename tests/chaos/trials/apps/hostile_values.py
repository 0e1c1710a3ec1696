"""Values and errors that nobody should pass on, each made by name from dice: the same in every process."""

# ruff: noqa: ARG005, DTZ901
from __future__ import annotations

import asyncio
import builtins
import random
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, NoReturn
from uuid import UUID

import msgspec

from pgworker import Cancelled

Make = Callable[[random.Random], Any]

DEPTH = 100_000
LARGE = 10_000_000
HUGE = 64 << 20


class Vicious(Exception):
    """What the methods of these objects raise."""


def _raise(*_: object, **__: object) -> NoReturn:
    raise Vicious("\ud800 raised by an object that was only looked at")


class Spiky:
    """Raises whatever is asked of it."""

    __str__ = __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __getattr__ = __reduce_ex__ = _raise


class SpikyText(str):
    """A str that raises, but for what it really is."""

    __slots__ = ()
    __str__ = __repr__ = __eq__ = __len__ = __iter__ = __contains__ = encode = __format__ = _raise
    __hash__ = str.__hash__


class LyingText(str):
    """Says that it is short and harmless."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\0" * 3

    def __len__(self) -> int:
        return 1

    def encode(self, *_: Any) -> bytes:
        return b"\xff"


class LyingDict(dict[Any, Any]):
    """Holds something else than it says."""

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter([1, None, b"x"])

    def items(self) -> Any:
        return [("a", float("nan")), ("b",)]

    def keys(self) -> Any:
        return [Spiky()]


class LyingList(list[Any]):
    """Never ends."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield 0

    def __len__(self) -> int:
        return 2**40


class LyingInt(int):
    """Compares as it likes."""

    __lt__ = __le__ = __gt__ = __ge__ = lambda _self, _other: True

    def __index__(self) -> int:
        return 10**30


class LyingFloat(float):
    """As this int."""

    __lt__ = __le__ = __gt__ = __ge__ = lambda _self, _other: True

    def __float__(self) -> float:
        return float("nan")


class Pretender:
    """Says that it is a str."""

    __class__ = str  # type: ignore[assignment]


class _Meta(type):
    __instancecheck__ = __subclasscheck__ = _raise

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            _raise()
        return super().__getattribute__(name)


class Nameless(metaclass=_Meta):
    """Of a class that will not say its name."""


class Colour(Enum):
    """One whose value is no JSON."""

    RED = object()


@dataclass
class Ring:
    """Holds itself."""

    me: Any = None
    more: list[Any] = field(default_factory=list)


class Struct(msgspec.Struct):
    """Holds anything."""

    inside: Any


Pair = namedtuple("Pair", "left right")


class VagueZone(tzinfo):
    """A time zone that does not know."""

    utcoffset = dst = tzname = _raise


def _deep(kind: type) -> Any:
    value: Any = 1
    for _ in range(DEPTH):
        value = [value] if kind is list else {"a": value}
    return value


def _ring(kind: type) -> Any:
    ring: Any = kind()
    if kind is list:
        ring.append(ring)
    elif kind is dict:
        ring["me"] = ring
    else:
        ring.me, ring.more = ring, [ring]
    return ring


NAMES = (
    "",
    " ",
    "a b",
    "a\nb",
    "\0",
    "\ud800",
    "日本",
    "\u202eabc",
    "'; drop schema pgworker cascade; --",
    '"',
    "../../etc/passwd",
    "%s",
    "%(id)s",
    "{0.__class__}",
    "$1",
    "\\",
    "<script>alert(1)</script>",
    "\x1b[31m\x07",
    "-rf",
    "--help",
    "a" * 100_000,
    "NaN",
    "null",
    "infinity",
    "1e999",
    "0x10",
    "９",
    "00000000-0000-0000-0000-000000000000",
    "{",
    '{"a": NaN}',
    '{"a": "\\u0000"}',
    '{"a": "\\ud800"}',
    '{"a": 1e999}',
    "[" * DEPTH,
    '{"a":' * DEPTH,
    "[1]",
)

VALUES: dict[str, Make] = {
    "a hostile name": lambda dice: dice.choice(NAMES),
    "random text": lambda dice: "".join(chr(dice.randrange(0x110000)) for _ in range(dice.randrange(20))),
    "random bytes": lambda dice: dice.randbytes(dice.randrange(40)),
    "U+0000": lambda dice: {"a": ["x" * dice.randrange(9) + "\0"]},
    "U+0000 in a key": lambda dice: {"\0": 1},
    "a lone surrogate": lambda dice: ["\udc80" * dice.randrange(1, 9)],
    "a surrogate in a key": lambda dice: {"\ud800": 1},
    "NaN": lambda dice: [float("nan")],
    "an infinity": lambda dice: dice.choice([float("inf"), float("-inf")]),
    "a huge integer": lambda dice: dice.choice([1, -1]) * 10 ** dice.randrange(300, 6000),
    "2 to the 1024": lambda dice: dice.choice([2**1023, 2**1024 - 1, 2**1024, -(2**1024), 2**63, -(2**63) - 1]),
    "a number": lambda dice: dice.choice([0, -1, -0.5, 1e300, 5e-324, 10**18, 1e18, 0.0001, 32768, 2**31, True]),
    "10 MB of text": lambda dice: "ä" * (LARGE // 2),
    "10 MB of bytes": lambda dice: b"\xff" * LARGE,
    "10 MB of items": lambda dice: [None] * (LARGE // 5),
    "64 MB of text": lambda dice: "x" * HUGE,
    "100,000 keys": lambda dice: dict.fromkeys(map(str, range(100_000))),
    "lists 100,000 deep": lambda dice: _deep(list),
    "dicts 100,000 deep": lambda dice: _deep(dict),
    "a list in itself": lambda dice: _ring(list),
    "a dict in itself": lambda dice: _ring(dict),
    "a dataclass in itself": lambda dice: _ring(Ring),
    "an object that raises": lambda dice: dice.choice([Spiky(), [Spiky()], {"a": Spiky()}]),
    "a str that raises": lambda dice: dice.choice([SpikyText("ok"), {SpikyText("k"): 1}, [SpikyText("ok")]]),
    "a str that lies": lambda dice: dice.choice([LyingText("x" * 3000), {LyingText("\0"): 1}, [LyingText("ok")]]),
    "a dict that lies": lambda dice: LyingDict(a=1),
    "a list that lies": lambda dice: LyingList([1, 2]),
    "a number that lies": lambda dice: dice.choice([LyingInt(10**40), LyingFloat("inf"), LyingInt(3)]),
    "what pretends to be a str": lambda dice: Pretender(),
    "an object of a nameless class": lambda dice: dice.choice([Nameless(), Nameless]),
    "keys that are no strings": lambda dice: {dice.choice([1, None, (1, 2), b"x", 2.5, True]): 1},
    "a generator": lambda dice: (number for number in range(3)),
    "a set": lambda dice: {1, "a", None, (2, 3)},
    "an object": lambda dice: dice.choice([object(), Colour.RED, Colour, sys, lambda: 0, range(3), 1j, Fraction(1, 3)]),
    "a Decimal": lambda dice: Decimal(dice.choice(["NaN", "sNaN", "Infinity", "1e999999", "0.1"])),
    "a datetime": lambda dice: dice.choice(
        [
            datetime.min,
            datetime.max,
            datetime.min.replace(tzinfo=timezone(timedelta(hours=23))),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
            datetime(9998, 12, 31, 23, 59, 59, 999999, timezone.utc),
            datetime(2030, 1, 1, tzinfo=VagueZone()),
        ]
    ),
    "a timedelta": lambda dice: dice.choice([timedelta.min, timedelta.max, timedelta(microseconds=-1), timedelta(0)]),
    "a UUID": lambda dice: dice.choice([UUID(int=0), UUID(int=2**128 - 1), UUID(int=7 << 76 | 2 << 62)]),
    "a memoryview": lambda dice: memoryview(bytearray(8)),
    "a struct": lambda dice: Struct(dice.choice([float("nan"), "\0", Spiky(), b"x"])),
    "a named tuple": lambda dice: Pair(float("nan"), "\0"),
}
RARE = frozenset({"64 MB of text", "10 MB of text", "10 MB of bytes", "10 MB of items", "100,000 keys"})
"""Taken one time in ten of the others."""


# -- errors


class Unpicklable(Exception):
    """Holds what can't be pickled."""

    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self.frame = sys._getframe()


def _saying(method: Callable[..., Any], kind: type[BaseException] = Exception) -> BaseException:
    made: BaseException = type("Said", (kind,), {"__str__": method, "__repr__": method})()
    return made


def _exit(_self: object) -> NoReturn:
    raise SystemExit(3)


def _recurse(self: object) -> str:
    return str(self)


def _with(error: BaseException, **attributes: Any) -> BaseException:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def _in_a_ring() -> BaseException:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def _chain(length: int) -> BaseException:
    error = ValueError("last")
    for _ in range(length):
        outer = ValueError("behind another")
        outer.__context__, error = error, outer
    return error


def _group(depth: int) -> BaseException:
    """Of groups of groups; without any before Python 3.11, which has none."""
    error: Exception = ValueError("\0\ud800")
    kind: Any = getattr(builtins, "ExceptionGroup", None)
    for _ in range(depth if kind else 0):
        error = kind("g" * 1000, [error] * 30)
    return error


def _named(**names: Any) -> BaseException:
    kind = types.new_class("Odd", (Exception,), {}, lambda body: body.update(names))
    made: BaseException = kind("odd")
    return made


def _renamed(name: str) -> BaseException:
    kind = type("Odd", (Exception,), {})
    kind.__qualname__ = name
    made: BaseException = kind("odd")
    return made


def _deep_stack() -> BaseException:
    def down() -> None:
        down()

    try:
        down()
    except RecursionError as error:
        return error
    raise AssertionError("no end")


ERRORS: dict[str, Make] = {
    "an ordinary one": lambda dice: ValueError("no"),
    "a message of any value": lambda dice: ValueError(value(dice)[1]),
    "a message of 10 MB": lambda dice: ValueError("\0ä\ud800" * (LARGE // 3)),
    "arguments of 10 MB": lambda dice: KeyError(b"\xff" * LARGE, "\0"),
    "a __str__ that raises": lambda dice: _saying(_raise),
    "a __str__ that exits": lambda dice: _saying(_exit),
    "a __str__ without end": lambda dice: _saying(_recurse),
    "a __str__ that returns no text": lambda dice: _saying(lambda _self: 5),
    "a __str__ that lies": lambda dice: _saying(lambda _self: LyingText("\0")),
    "a __str__ that raises spikes": lambda dice: _saying(lambda _self: SpikyText("spikes")),
    "an unpicklable one": lambda dice: Unpicklable(),
    "a cause that is itself": lambda dice: _in_a_ring(),
    "a long chain": lambda dice: _chain(5000),
    "a group of groups": lambda dice: _group(5),
    "notes that are none": lambda dice: _with(
        ValueError("x"), __notes__=dice.choice([5, [None, 5], Spiky(), [Spiky()]])
    ),
    "members that are none": lambda dice: _with(ValueError("x"), exceptions=dice.choice([(1, 2), 5, Spiky()])),
    "a context that raises": lambda dice: _named(__context__=property(_raise), __cause__=property(_raise)),
    "a traceback that raises": lambda dice: _named(__traceback__=property(_raise)),
    "a class that raises": lambda dice: _named(__class__=property(_raise)),
    "an attribute that raises": lambda dice: _named(__getattribute__=_raise),
    "a module that is none": lambda dice: _named(__module__=dice.choice([5, None, Spiky()])),
    "a name of one's own": lambda dice: _renamed(dice.choice(["\0", "\ud800", "a\nb", "x" * 100_000])),
    "a hash that raises": lambda dice: _named(__hash__=_raise, __eq__=_raise, __bool__=_raise),
    "a deep stack": lambda dice: _deep_stack(),
    "SystemExit": lambda dice: SystemExit(dice.choice([0, 1, "why", Spiky()])),
    "KeyboardInterrupt": lambda dice: KeyboardInterrupt(),
    "GeneratorExit": lambda dice: GeneratorExit(),
    "StopIteration": lambda dice: dice.choice([StopIteration(1), StopAsyncIteration(2)]),
    "asyncio.CancelledError": lambda dice: asyncio.CancelledError("nobody asked"),
    "MemoryError": lambda dice: MemoryError(),
    "Cancelled": lambda dice: Cancelled(value(dice)[1]),
    "a BaseException": lambda dice: _saying(_raise, BaseException),
}


def value(dice: random.Random) -> tuple[str, Any]:
    """Its kind, and a value."""
    kind = choice(VALUES, dice)
    return kind, VALUES[kind](dice)


def error(dice: random.Random) -> tuple[str, BaseException]:
    """Its kind, and an error to raise."""
    kind = choice(ERRORS, dice)
    made: BaseException = ERRORS[kind](dice)
    return kind, made


def choice(kinds: dict[str, Make], dice: random.Random) -> str:
    """What `value` and `error` choose first."""
    while (kind := dice.choice(list(kinds))) in RARE and dice.random() > 0.1:
        pass
    return kind


def dice_of(seed: str) -> random.Random:
    """The same dice in every process."""
    return random.Random(seed)
