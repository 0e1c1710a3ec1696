from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker.observe import logs

TEXT = st.text(st.characters(exclude_categories=[]))
VALUES = TEXT | st.integers() | st.floats() | st.none() | st.booleans() | st.binary() | st.lists(TEXT)


class Mute:
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


@pytest.fixture(autouse=True)
def _root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def record(
    event: object, *args: object, fields: object = None, error: BaseException | None = None
) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("pgworker.test", logging.INFO, __file__, 1, event, args, exc_info)
    made.created, made.msecs = 1_795_255_200.123, 123.0
    if fields is not None:
        made.fields = fields
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = logs.JsonLines().format(made)
    assert line.isascii()
    assert line.isprintable()
    told: dict[str, Any] = json.loads(line)
    json.dumps(told, ensure_ascii=False).encode()  # no lone surrogates
    return told


def test_a_text_line_has_time_level_process_sentence_and_fields() -> None:
    formatter = logs.TextLines()
    formatter.process = "worker 3"
    line = formatter.format(record("lease %s", "lost", fields={"job": 7, "task": "va lue", "empty": "", "org": None}))
    assert line == '2026-11-21T10:00:00.123Z INFO  worker 3  lease lost  job=7 task="va lue" empty="" org=None'


def test_a_json_line_has_the_same_and_keeps_numbers() -> None:
    told = as_json(record("lease %s", "lost", fields={"job": 7, "ratio": 0.5, "org": None, "late": True, "pid": 1}))
    own_pid = told.pop("pid")
    assert told == {
        "ts": "2026-11-21T10:00:00.123Z",
        "level": "INFO",
        "event": "lease lost",
        "process": "pgworker",
        "logger": "pgworker.test",
        "job": 7,
        "ratio": 0.5,
        "org": None,
        "late": True,
        "pid_": 1,
    }
    assert own_pid > 1


@given(TEXT, st.dictionaries(TEXT, VALUES, max_size=4))
def test_one_event_is_one_printable_line_whatever_it_contains(event: str, fields: dict[str, Any]) -> None:
    made = record("%s", event, fields=fields)
    assert logs.TextLines().format(made).isprintable()
    assert as_json(made)["level"] == "INFO"


def test_fields_cannot_be_forged_from_within_a_value() -> None:
    line = logs.TextLines().format(record("x", fields={"task": 'a" job=9 \\" \n\x1b[2J\u2028', "job": 7}))
    assert line.endswith(r'  task="a\" job=9 \\\" \n\x1b[2J\u2028" job=7')
    assert len(re.findall(r'(?<!\\)"', line)) == 2


def test_characters_that_move_the_cursor_or_are_no_text_come_escaped() -> None:
    made = record("a\x7f\x1b[2J\r\n\x85\u2028\ud800z")
    assert logs.TextLines().format(made).endswith(r"  a\x7f\x1b[2J\r\n\x85\u2028\ud800z")
    assert as_json(made)["event"] == "a\x7f\x1b[2J\r\n\x85\u2028\\ud800z"


def test_a_bad_value_costs_only_itself() -> None:
    told = as_json(record("x", fields={"mute": Mute(), "big": 1 << 20_000, "nan": float("nan"), "good": 1}))
    assert told["mute"] == "(its __str__ raised ValueError)"
    assert told["nan"] == "nan"
    assert isinstance(told["big"], str)
    assert (told["event"], told["good"]) == ("x", 1)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(record("%d jobs", "seven"), id="wrong-argument"),
        pytest.param(record("%s %s", "one"), id="missing-argument"),
        pytest.param(record("%s", Mute()), id="argument-without-str"),
        pytest.param(record(Mute()), id="message-without-str"),
        pytest.param(record("x", fields={Mute(): 1, 2: 3}), id="bad-names"),
        pytest.param(record("x", fields="no dict"), id="no-dict"),
        pytest.param(record("x" * 10_000_000, fields={"a": "\0" * 1_000_000}), id="huge"),
        pytest.param(record("x", error=ValueError(Mute())), id="error-without-str"),
    ],
)
def test_no_record_is_too_strange_to_be_one_line_of_bounded_length(made: logging.LogRecord) -> None:
    text = logs.TextLines().format(made)
    assert text.isprintable()
    assert len(text) < 10 * logs.MAX_VALUE
    assert as_json(made)["event"]


def test_a_sentence_whose_arguments_do_not_fit_is_still_told() -> None:
    assert as_json(record("%d jobs", "seven"))["event"] == "%d jobs"


def test_a_traceback_is_one_field_of_the_line() -> None:
    with pytest.raises(KeyError) as caught:
        dict[str, int]()["gone"]
    made = record("it broke", error=caught.value)
    told = as_json(made)
    assert told["error"] == "KeyError: 'gone'"
    assert '    dict[str, int]()["gone"]\n' in told["traceback"]
    assert r"    dict[str, int]()[\"gone\"]\n" in logs.TextLines().format(made)


def test_configured_once_or_twice_each_event_is_written_once_with_its_process() -> None:
    stream = io.StringIO()
    logs.configure("text", stream=stream)
    logs.configure("json", logging.INFO, stream)
    logs.set_process("worker 3")
    logs.logger("worker.clerk").info("lease lost", extra=logs.fields(job="j", execution=2))
    logs.logger("worker.clerk").debug("not this one")
    logging.getLogger("somebody.else").warning("two\nlines")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["logger"], first["process"], first["job"], first["execution"]) == (
        "pgworker.worker.clerk",
        "worker 3",
        "j",
        2,
    )
    assert second["event"] == "two\nlines"


def test_fields_are_one_plain_attribute_that_the_standard_library_can_set() -> None:
    assert logs.fields(job=1, task="t") == {"fields": {"job": 1, "task": "t"}}


def test_a_throttle_passes_one_message_per_key_and_second_and_counts_the_rest() -> None:
    now = 100.0
    throttle = logs.Throttle(clock=lambda: now)
    assert throttle.admit("away") == ""
    assert [throttle.admit("away") for _ in range(12)] == [None] * 12
    assert throttle.admit("other") == ""
    now = 101.0
    assert throttle.admit("away") == " (12 more like this)"
    assert throttle.admit("away") is None
    now = 102.5
    assert throttle.admit("away") == " (1 more like this)"
    now = 104.0
    assert throttle.admit("away") == ""
