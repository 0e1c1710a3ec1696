from __future__ import annotations

import dataclasses
import enum
import json
import sys
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker.errors import InvalidPayload
from pgworker.model.payload import (
    MAX_DEPTH,
    MAX_PAYLOAD_BYTES,
    MAX_RESULT_BYTES,
    decode,
    describe_error,
    encode_payload,
    encode_result,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=20
)
ANY_TEXT = st.text(st.characters(exclude_categories=[]))
ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | ANY_TEXT | st.binary() | st.complex_numbers() | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT | st.integers() | st.floats() | st.tuples(), inner),
    max_leaves=10,
)


def nested(levels: int) -> list[Any]:
    value: list[Any] = [0]
    for _ in range(levels - 1):
        value = [value]
    return value


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts(inner)


def fits_jsonb(data: bytes) -> bool:
    """What jsonb demands of a JSON text: valid UTF-8 and syntax, no NaN, no U+0000, no lone surrogate."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    together = "".join(texts(json.loads(data.decode(), parse_constant=refuse)))
    return "\0" not in together and together.encode().decode() == together


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: float
    inside: object = None


class Record(msgspec.Struct):
    value: object


def hollow() -> Record:
    record = Record(1)
    del record.value
    return record


class Safe(str):
    __slots__ = ()


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Hostile(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(cls, other: object) -> bool:  # takes the hash away too
        raise RuntimeError("==")


class Trap(metaclass=Hostile):
    pass


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_what_json_can_express_comes_back_as_it_was(arguments: dict[str, Any]) -> None:
    assert decode(encode_payload(arguments)) == arguments


@given(ANYTHING)
def test_a_result_is_either_storable_or_a_problem(value: object) -> None:
    result = encode_result(value)
    if result.json is not None:
        assert fits_jsonb(result.json)
        assert result.problem is None
    else:
        assert (result.problem is None) == (value is None)


@given(st.dictionaries(ANY_TEXT, ANYTHING, max_size=3))
def test_arguments_are_either_storable_or_refused_by_type(arguments: dict[str, Any]) -> None:
    try:
        assert fits_jsonb(encode_payload(arguments))
    except InvalidPayload as error:
        assert "can't be stored" in str(error)  # noqa: PT017  both outcomes are right


@contextmanager
def little_memory(limit: int = 32 << 20) -> Iterator[None]:
    """What is done inside allocates no more than `limit` bytes at a time: a value of 64 MB is refused before a copy."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_types_beyond_json_are_stored_the_msgspec_way() -> None:
    key = uuid.UUID(int=7)
    arguments = {
        "when": datetime(2026, 11, 21, 10, tzinfo=timezone.utc),
        "day": date(2026, 11, 21),
        "key": key,
        "price": Decimal("9.90"),
        "point": Point(1.5),
        "record": Record({"a": 1}),
        "colour": Colour.RED,
        "pair": (1, 2),
        "set": {3},
        "text": Safe("safe"),
        "keys": {1: "a"},
    }
    assert decode(encode_payload(arguments)) == {
        "when": "2026-11-21T10:00:00Z",
        "day": "2026-11-21",
        "key": str(key),
        "price": "9.90",
        "point": {"x": 1.5, "inside": None},
        "record": {"value": {"a": 1}},
        "colour": "red",
        "pair": [1, 2],
        "set": [3],
        "text": "safe",
        "keys": {"1": "a"},
    }


def cycle() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


def doubling() -> list[Any]:
    value: list[Any] = [1]
    for _ in range(MAX_DEPTH - 5):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(float("nan"), "NaN", id="nan"),
        pytest.param([None, {"deep": float("inf")}], "infinity", id="infinity-inside"),
        pytest.param(Point(float("nan")), "NaN", id="nan-in-a-dataclass"),
        pytest.param(Record([float("nan")]), "NaN", id="nan-in-a-struct"),
        pytest.param("a\0b", "character U.0000", id="nul"),
        pytest.param({"a\0": 1}, "character U.0000", id="nul-in-a-key"),
        pytest.param("\\\0", "character U.0000", id="nul-behind-a-backslash"),
        pytest.param("\ud800", "surrogate", id="surrogate"),
        pytest.param({"\udfff": 1}, "surrogate", id="surrogate-in-a-key"),
        pytest.param(1 << 2000, "1024 bits", id="integer"),
        pytest.param(10**10_000, "1024 bits", id="integer-that-cannot-be-printed"),
        pytest.param(nested(MAX_DEPTH), "nested deeper than 64", id="one-level-too-deep"),
        pytest.param(nested(100_000), "nested deeper than 64", id="100000-levels"),
        pytest.param(Record(nested(MAX_DEPTH)), "nested deeper than 64", id="deep-in-a-struct"),
        pytest.param(cycle(), "contains itself|1048576 bytes", id="cycle"),
        pytest.param(doubling(), "1048576 bytes", id="small-in-memory-huge-as-text"),
        pytest.param("x" * (64 << 20), "1048576 bytes", id="64-MB"),
        pytest.param([{"x": "x" * (64 << 20)}], "1048576 bytes", id="64-MB-inside"),
        pytest.param(b"x" * MAX_PAYLOAD_BYTES, "1048576 bytes", id="bytes-that-grow-as-base64"),
        pytest.param("\x01" * (MAX_PAYLOAD_BYTES // 2), "1048576 bytes", id="text-that-grows-by-escapes"),
        pytest.param(object(), "object can't be encoded", id="object"),
        pytest.param(Mute(), "Mute can't be encoded", id="object-without-a-repr"),
        pytest.param(Trap(), "can't be stored", id="object-of-a-hostile-class"),
        pytest.param(msgspec.Raw(b"not json"), "Raw", id="raw"),
        pytest.param(Record(msgspec.Raw(b"not json")), "Raw", id="raw-inside"),
        pytest.param(hollow(), "value", id="struct-without-its-field"),
        pytest.param({(1, 2): 3}, "keys", id="tuple-as-key"),
        pytest.param((n for n in range(3)), "generator can't be encoded", id="generator"),
    ],
)
def test_a_bad_argument_is_refused_by_name_and_uncopied_and_as_a_result_becomes_null(
    value: object, reason: str
) -> None:
    with little_memory(), pytest.raises(InvalidPayload, match=reason) as caught:
        encode_payload({"good": 1, "bad": value})
    assert str(caught.value).startswith("argument 'bad' can't be stored: ")
    assert len(str(caught.value)) < 500

    result = encode_result(value)
    assert result.json is None or reason == "nested deeper than 64"  # a result has one level more than an argument
    assert result.problem is None or "was not stored" in result.problem


def test_results_are_limited_to_64_kib() -> None:
    assert encode_result("x" * (MAX_RESULT_BYTES - 2)).json is not None
    refused = encode_result("x" * (MAX_RESULT_BYTES - 1))
    assert refused.json is None
    assert refused.problem == (
        "the result of type str was not stored: it takes more than the 65536 bytes that are allowed; "
        "store it elsewhere and pass a reference"
    )


def test_the_limits_of_a_payload_are_inclusive() -> None:
    assert len(encode_payload({"a": "x" * (MAX_PAYLOAD_BYTES - len('{"a":""}'))})) == MAX_PAYLOAD_BYTES
    assert decode(encode_payload({"a": nested(MAX_DEPTH - 1)})) == {"a": nested(MAX_DEPTH - 1)}
    assert encode_payload({"a": "\\u0000"}) == rb'{"a":"\\u0000"}'


def test_arguments_too_large_only_together_blame_none_of_them() -> None:
    half = "x" * (MAX_PAYLOAD_BYTES // 2)
    with pytest.raises(InvalidPayload, match=r"^the arguments can't be stored: it takes more than"):
        encode_payload({"a": half, "b": half})


@pytest.mark.parametrize("arguments", [[1], "text", None, {1: 2}, {None: 1}, {b"a": 1}])
def test_arguments_must_be_named_by_strings(arguments: Any) -> None:
    with pytest.raises(InvalidPayload, match=r"mapping of names|names of arguments must be strings"):
        encode_payload(arguments)


@pytest.mark.parametrize("data", [b"", b"{", b"[NaN]", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b"1" * 10_000, "nope"])
def test_a_stored_text_that_cannot_be_decoded_is_refused_by_type(data: bytes | str) -> None:
    with pytest.raises(InvalidPayload, match="can't be decoded"):
        decode(data)


def throw(error: BaseException) -> None:
    raise error


def raised(error: BaseException) -> BaseException:
    try:
        throw(error)
    except BaseException as caught:  # noqa: BLE001  any error is wanted, with its traceback
        return caught
    raise AssertionError


def size(description: dict[str, str]) -> int:
    return sum(len(text.encode()) for text in description.values())


def test_an_error_is_described_with_its_frames_and_what_caused_it() -> None:
    inner, outer = raised(KeyError("inner")), InvalidPayload("outer")
    outer.__cause__ = inner
    told = describe_error(raised(outer))
    assert told["type"] == "pgworker.errors.InvalidPayload"
    assert told["message"] == "outer"
    first, second = told["traceback"].split("\n\nCaused by:\n")
    assert first.endswith("InvalidPayload: outer")
    assert second.endswith("KeyError: 'inner'")
    assert "in throw\n    raise error\n" in first
    assert "in throw\n    raise error\n" in second


def test_what_an_error_says_is_made_storable() -> None:
    told = describe_error(raised(ValueError("nul \0 surrogate \ud800 emoji 🐘")))
    assert told["message"] == "nul \\0 surrogate \\ud800 emoji 🐘"
    assert fits_jsonb(msgspec.json.encode(told))


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class Lying(Exception):
    @property
    def exceptions(self) -> Any:
        raise RuntimeError("no")


def chained(levels: int) -> BaseException:
    error: BaseException = ValueError("root")
    for level in range(levels):
        outer = ValueError(level)
        outer.__cause__, error = error, outer
    return error


def endless() -> BaseException:
    def tick() -> None:
        tock()

    def tock() -> None:
        tick()

    with pytest.raises(RecursionError) as caught:
        tick()
    return caught.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(Unspeakable(), "its __str__ raised SystemExit", id="str-raises"),
        pytest.param(Lying("x"), "x", id="attribute-raises"),
        pytest.param(ValueError(Mute()), "its __str__ raised", id="argument-without-a-repr"),
        pytest.param(ValueError("\0\ud800é" * (4 << 20)), "\\0\\ud800é", id="huge-and-dirty"),
        pytest.param(chained(100_000), "99999", id="100000-causes"),
        pytest.param(endless(), "recursion", id="endless-recursion"),
        pytest.param(type("\\" * 50_000, (Exception,), {})("x"), "x", id="huge-name"),
        pytest.param(KeyboardInterrupt(), "", id="no-message"),
    ],
)
def test_no_error_is_too_strange_to_be_described(error: BaseException, said: str) -> None:
    told = describe_error(raised(error), limit=4096)
    assert said in told["message"]
    assert told["type"]
    assert told["traceback"]
    assert size(told) <= 4096
    assert fits_jsonb(msgspec.json.encode(told))


def test_errors_that_caused_each_other_are_shown_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert describe_error(first)["traceback"] == "ValueError: first\n\nCaused by:\nValueError: second"


def test_of_a_long_traceback_the_innermost_frames_are_kept() -> None:
    told = describe_error(endless())
    assert told["traceback"].count(", in t") == 30
    assert "RecursionError: maximum recursion depth exceeded" in told["traceback"].splitlines()[-1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_the_members_of_a_group_are_shown_however_deep_the_nesting() -> None:
    group: BaseException = BaseExceptionGroup("two", [ValueError("one"), KeyError("other")])  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    told = describe_error(group)
    assert "In the group:\nValueError: one" in told["traceback"]
    assert "KeyError: 'other'" in told["traceback"]
    for _ in range(50_000):
        group = BaseExceptionGroup("outer", [group])  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    assert "more errors are behind these" in describe_error(group)["traceback"]
