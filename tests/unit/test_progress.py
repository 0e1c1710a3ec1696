"""What a handler may say of how far it is, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker.errors import InvalidPayload
from pgworker.model.payload import MAX_DEPTH, MAX_RESULT_BYTES, decode
from pgworker.model.progress import MAX_MESSAGE, ProgressUpdate, check_progress

JOB = UUID(int=1)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.integers()),
)


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def nested(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return dict(value)


@given(
    st.floats(0, 1) | st.integers(0, 1),
    st.text(max_size=MAX_MESSAGE),
    st.dictionaries(names, st.integers(-(2**63), 2**63)),
)
def test_what_passes_is_a_fraction_a_text_that_postgresql_takes_and_json(
    fraction: float, message: str, checkpoint: dict[str, int]
) -> None:
    said = check_progress(JOB, fraction, message, checkpoint)
    assert abs(said.fraction - fraction) < 1e-6
    assert len(said.message) == len(message)
    assert "\0" not in said.message
    said.message.encode()
    assert said.checkpoint is not None
    assert decode(said.checkpoint) == checkpoint


@given(anything, anything, anything)
def test_whatever_is_said_passes_or_is_refused_with_a_value_error(fraction: Any, message: Any, checkpoint: Any) -> None:
    try:
        said = check_progress(JOB, fraction, message, checkpoint)
    except ValueError:
        return
    assert 0 <= said.fraction <= 1
    if said.checkpoint is not None:
        assert len(said.checkpoint.encode()) <= MAX_RESULT_BYTES
        json.loads(said.checkpoint)


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [
        (40, "40"),
        (-0.1, "-0.1"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "something of type bool"),
        (10**5000, "something of type int"),
        ("0.4", "something of type str"),
        (None, "something of type NoneType"),
    ],
    ids=lambda given: str(given) if isinstance(given, str) else type(given).__name__,
)
def test_a_fraction_that_is_none_is_refused_in_a_sentence(fraction: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"a fraction from 0 to 1, such as 0\.4, not {shown}$"):
        check_progress(JOB, fraction, "", None)


@pytest.mark.parametrize("message", [None, b"x", 7, "x" * (MAX_MESSAGE + 1)])
def test_a_message_that_is_no_short_string_is_refused(message: Any) -> None:
    with pytest.raises(ValueError, match="a string of at most 1000 characters"):
        check_progress(JOB, 0.4, message, None)


def test_a_fraction_near_nothing_is_one_that_postgresql_takes() -> None:
    assert check_progress(JOB, 5e-324, "", None).fraction == 0.0


def test_nul_and_lone_surrogates_are_replaced_in_a_message() -> None:
    assert check_progress(JOB, 0.4, "a\0b\ud800c", None).message == "a\ufffdb?c"


@pytest.mark.parametrize(
    ("checkpoint", "why"),
    [
        ([1], "must be a mapping"),
        ("page 7", "must be a mapping"),
        ({7: "page"}, "whose keys are strings"),
        ({"a": float("nan")}, "NaN"),
        ({"a": object()}, "objects of type object can't be encoded"),
        ({"a": "x\0"}, r"U\+0000"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"a": "x" * MAX_RESULT_BYTES}, "more than the 65536 bytes"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(100_000), "nested deeper"),
    ],
    ids=lambda given: given if isinstance(given, str) and len(given) < 50 else type(given).__name__,
)
def test_a_checkpoint_that_can_not_be_stored_is_refused_in_a_sentence(checkpoint: Any, why: str) -> None:
    with pytest.raises(InvalidPayload, match=f"^(a|the) checkpoint .*{why}"):
        check_progress(JOB, 0.4, "", checkpoint)


def test_a_checkpoint_of_the_largest_size_passes() -> None:
    said = check_progress(JOB, 0.4, "", {"a": "x" * (MAX_RESULT_BYTES - 8)})
    assert len(said.checkpoint or "") == MAX_RESULT_BYTES


def test_what_is_said_of_a_mutable_object_stays_as_it_was() -> None:
    pages: dict[str, list[int]] = {"pages": [1]}
    said = check_progress(JOB, 0.4, "", pages)
    pages["pages"].append(2)
    assert said.checkpoint == '{"pages":[1]}'


@pytest.mark.parametrize("checkpoint", [None, {"page": 2}])
def test_the_last_checkpoint_counts_whatever_is_said_after_it(checkpoint: Mapping[str, int] | None) -> None:
    before = check_progress(JOB, 0.1, "one", {"page": 1})
    said = check_progress(JOB, 0.2, "two", checkpoint).after(before)
    assert said == ProgressUpdate(JOB, 0.2, "two", '{"page":2}' if checkpoint else '{"page":1}')
    assert check_progress(JOB, 0.1, "", None).after(None).checkpoint is None
