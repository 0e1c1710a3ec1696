from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker.errors import ConfigurationError, InvalidJob
from pgworker.model.durations import MAX_SECONDS, seconds
from pgworker.model.names import check_queue, check_task
from pgworker.model.retry import Backoff


def test_delays_double_from_the_base_to_the_cap() -> None:
    assert [Backoff().delay(failures, 0.0) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_jitter_adds_up_to_its_fraction_of_the_delay() -> None:
    assert Backoff(jitter=0.25).delay(3, 1.0) == 5.0
    assert Backoff(jitter=0.25).delay(9, 1.0) == 37.5
    assert Backoff(jitter=0).delay(3, 1.0) == 4.0
    assert [Backoff(base=60).delay(failures, 0.0) for failures in (1, 2)] == [60, 60]


@given(st.integers(1, 10_000), st.floats(0, MAX_SECONDS), st.floats(0, MAX_SECONDS), st.floats(0, 1), st.floats(0, 1))
def test_no_number_of_failures_overflows_or_shortens_the_delay(
    failures: int, one: float, other: float, jitter: float, random: float
) -> None:
    backoff = Backoff(base=min(one, other), cap=max(one, other), jitter=jitter)
    delay = backoff.delay(failures, random)
    assert backoff.base <= delay <= backoff.cap * 2
    assert delay <= backoff.delay(failures + 1, random)


def test_base_and_cap_may_be_timedeltas() -> None:
    assert Backoff(timedelta(minutes=1), timedelta(hours=1)) == Backoff(60.0, 3600.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"base": -1}, "the base of a backoff must be between 0 seconds and 100 years, not -1"),
        ({"cap": "30"}, "the cap of a backoff must be a number of seconds or a timedelta, not str"),
        ({"base": 60, "cap": 30}, r"the cap of a backoff \(30 s\) must not be below its base \(60 s\)"),
        ({"jitter": 1.5}, "the jitter of a backoff must be a number between 0 and 1"),
        ({"jitter": float("nan")}, "the jitter of a backoff must be a number between 0 and 1"),
        ({"jitter": True}, "the jitter of a backoff must be a number between 0 and 1"),
    ],
)
def test_a_backoff_that_makes_no_sense_says_what_is_allowed(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(InvalidJob, match=f"^{sentence}$"):
        Backoff(**arguments)


@pytest.mark.parametrize("value", [0, 1, 0.5, MAX_SECONDS, timedelta(0), timedelta(days=1, microseconds=1)])
def test_seconds_takes_numbers_and_timedeltas(value: float | timedelta) -> None:
    expected = value.total_seconds() if isinstance(value, timedelta) else value
    assert seconds(value) == expected
    assert type(seconds(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        -1,
        -0.001,
        float("nan"),
        float("inf"),
        MAX_SECONDS * 2,
        pytest.param(10**5000, id="huge"),
        timedelta(-1),
        timedelta.max,
        True,
        "1",
        None,
        [],
    ],
)
def test_seconds_refuses_anything_else_in_a_sentence_of_the_wanted_type(value: object) -> None:
    with pytest.raises(InvalidJob, match=r"^the timeout must be "):
        seconds(value, "the timeout")
    with pytest.raises(ConfigurationError, match=r"^drain_timeout must be "):
        seconds(value, "drain_timeout", error=ConfigurationError)


@pytest.mark.parametrize("name", ["default", "a", "Mail.send:v2_x-1", "x" * 128])
def test_ordinary_names_pass(name: str) -> None:
    assert check_queue(name) == name
    assert check_task(name * 2) == name * 2


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a\n", "é", "a/b", "a\0", "'; --", "x" * 257, "x" * 10_000_000, 1, None]
)
def test_other_names_are_refused_in_a_short_sentence(name: object) -> None:
    for check in (check_queue, check_task):
        with pytest.raises(InvalidJob, match="name") as caught:
            check(name)
        assert len(str(caught.value)) < 1000


def test_a_queue_name_has_at_most_128_characters() -> None:
    with pytest.raises(InvalidJob, match="1 to 128"):
        check_queue("x" * 129)
