from __future__ import annotations

import io
import json
import logging
import logging.config
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgworker.observe import lines, logs

TEXT = st.text(st.characters(exclude_categories=[]))
VALUES = TEXT | st.integers() | st.floats() | st.none() | st.booleans() | st.binary() | st.lists(TEXT)


class Mute:
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


@pytest.fixture(autouse=True)
def _root_logger_restored() -> Iterator[None]:
    names = (None, "pgworker", "pgworker.task", "psycopg")
    kept = [
        (made, made.handlers[:], made.filters[:], made.level, made.propagate, made.parent)
        for made in map(logging.getLogger, names)
    ]
    yield
    for found in logging.getLogger().manager.loggerDict.values():
        if isinstance(found, logging.Logger):  # dictConfig turns off all that it does not name
            found.disabled = False
    for made, handlers, filters, level, propagate, parent in kept:
        made.handlers[:], made.filters[:], made.propagate, made.parent = handlers, filters, propagate, parent
        made.setLevel(level)


def record(
    event: object, *args: object, fields: object = None, error: BaseException | None = None
) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("pgworker.test", logging.INFO, __file__, 1, event, args, exc_info)
    made.created, made.msecs = 1_795_255_200.123456, 123.0
    if fields is not None:
        made.fields = fields
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = lines.JsonLines().format(made)
    assert line.isascii()
    assert line.isprintable()
    told: dict[str, Any] = json.loads(line)
    json.dumps(told, ensure_ascii=False).encode()  # no lone surrogates
    return told


def test_a_text_line_has_time_level_process_sentence_and_fields() -> None:
    formatter = lines.TextLines()
    formatter.process, formatter.host = "worker 3", "web-1"
    line = formatter.format(record("lease %s", "lost", fields={"job": 7, "task": "va lue", "empty": "", "org": None}))
    assert line == (
        '2026-11-21T10:00:00.123456Z INFO  worker 3  lease lost  job=7 task="va lue" empty="" org=None host=web-1'
    )


def test_a_json_line_has_the_same_and_keeps_numbers() -> None:
    fields = {"event": "lease_lost", "job": 7, "ratio": 0.5, "org": None, "late": True, "pid": 1}
    told = as_json(record("lease %s", "lost", fields=fields))
    own_pid, host = told.pop("pid"), told.pop("host")
    assert told == {
        "time": "2026-11-21T10:00:00.123456Z",
        "level": "INFO",
        "event": "lease_lost",
        "message": "lease lost",
        "process": "pgworker",
        "logger": "pgworker.test",
        "job": 7,
        "ratio": 0.5,
        "org": None,
        "late": True,
        "pid_": 1,
    }
    assert own_pid > 1
    assert host == socket.gethostname()


@given(TEXT, st.dictionaries(TEXT, VALUES, max_size=4))
def test_one_event_is_one_printable_line_whatever_it_contains(event: str, fields: dict[str, Any]) -> None:
    made = record("%s", event, fields=fields)
    assert lines.TextLines().format(made).isprintable()
    assert as_json(made)["level"] == "INFO"


def test_fields_cannot_be_forged_from_within_a_value() -> None:
    formatter = lines.TextLines()
    formatter.host = "h"
    line = formatter.format(record("x", fields={"task": 'a" job=9 \\" \n\x1b[2J\u2028', "job": 7}))
    assert line.endswith(r'  task="a\" job=9 \\\" \n\x1b[2J\u2028" job=7 host=h')
    assert len(re.findall(r'(?<!\\)"', line)) == 2


def test_characters_that_move_the_cursor_or_are_no_text_come_escaped() -> None:
    made = record("a\x7f\x1b[2J\r\n\x85\u2028\ud800z")
    assert r"  a\x7f\x1b[2J\r\n\x85\u2028\ud800z  host=" in lines.TextLines().format(made)
    assert as_json(made)["message"] == "a\x7f\x1b[2J\r\n\x85\u2028\\ud800z"


def test_a_bad_value_costs_only_itself() -> None:
    told = as_json(record("x", fields={"mute": Mute(), "big": 1 << 20_000, "nan": float("nan"), "good": 1}))
    assert told["mute"] == "(its __str__ raised ValueError)"
    assert told["nan"] == "nan"
    assert isinstance(told["big"], str)
    assert (told["message"], told["good"]) == ("x", 1)


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
    text = lines.TextLines().format(made)
    assert text.isprintable()
    assert len(text) < 10 * lines.MAX_VALUE
    assert as_json(made)["message"]


def test_a_sentence_whose_arguments_do_not_fit_is_still_told() -> None:
    assert as_json(record("%d jobs", "seven"))["message"] == "%d jobs"


def test_a_traceback_is_one_field_of_the_line() -> None:
    with pytest.raises(KeyError) as caught:
        dict[str, int]()["gone"]
    made = record("it broke", error=caught.value)
    told = as_json(made)
    assert told["error"] == "KeyError: 'gone'"
    assert '    dict[str, int]()["gone"]\n' in told["exception"]
    assert r"    dict[str, int]()[\"gone\"]\n" in lines.TextLines().format(made)


def test_configured_once_or_twice_each_event_is_written_once_with_its_process() -> None:
    stream = io.StringIO()
    logs.configure("text", stream=stream)
    logs.configure("json", "info", stream)
    logs.set_process("worker 3")
    logs.logger("worker.clerk").info("lease lost", extra=logs.fields("lease_lost", job="j", execution=2))
    logs.logger("worker.clerk").debug("not this one")
    logging.getLogger("somebody.else").warning("two\nlines")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["logger"], first["process"], first["job"], first["execution"]) == (
        "pgworker.worker.clerk",
        "worker 3",
        "j",
        2,
    )
    assert (first["event"], second["message"]) == ("lease_lost", "two\nlines")


def test_fields_are_one_plain_attribute_that_the_standard_library_can_set() -> None:
    assert logs.fields("job_failed", job=1) == {"fields": {"event": "job_failed", "job": 1}}


def test_the_journal_gets_a_priority_and_no_time() -> None:
    formatter = lines.TextLines(for_journal=True)
    made = record("x")
    starts = {}
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        made.levelno, made.levelname = level, logging.getLevelName(level)
        starts[made.levelname] = formatter.format(made).partition("  x")[0]
    assert starts == {
        "DEBUG": "<7>DEBUG pgworker",
        "INFO": "<6>INFO  pgworker",
        "WARNING": "<4>WARNING pgworker",
        "ERROR": "<3>ERROR pgworker",
        "CRITICAL": "<3>CRITICAL pgworker",
    }


def test_what_a_call_gives_beside_our_fields_is_in_the_line_too() -> None:
    made = record("x")
    made.order = 7
    assert as_json(made)["order"] == 7
    assert " order=7 " in lines.TextLines().format(made)


def test_a_line_of_the_app_names_its_logger_and_one_of_ours_its_event() -> None:
    made = record("x", fields={"event": "drained"})
    assert "  event=drained host=" in lines.TextLines().format(made)
    made.name = "shop.jobs"
    assert " logger=shop.jobs " in lines.TextLines().format(made)


def test_the_job_that_runs_is_in_every_line_that_names_no_other() -> None:
    made = record("x")
    made.pgworker = {"job": 1, "execution": 2}
    assert (as_json(made)["job"], as_json(made)["execution"]) == (1, 2)
    made.fields = {"job": 7}
    assert as_json(made)["job"] == 7
    assert "execution" not in as_json(made)


def test_debug_is_for_us_and_for_handlers_and_not_for_libraries() -> None:
    stream = io.StringIO()
    logs.configure("json", "debug", stream)
    for name in ("pgworker.worker", "pgworker.task", "library"):
        logging.getLogger(name).debug("from %s", name)
    assert [json.loads(line)["logger"] for line in stream.getvalue().splitlines()] == [
        "pgworker.worker",
        "pgworker.task",
    ]


def test_warning_silences_libraries_too() -> None:
    stream = io.StringIO()
    logs.configure("json", "warning", stream)
    for name in ("pgworker.worker", "pgworker.task", "library"):
        logging.getLogger(name).info("no")
        logging.getLogger(name).warning("yes")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["yes"] * 3


def test_an_app_that_configures_logging_has_its_own_lines_and_ours_still_come_out() -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    logs.configure("json", "info", ours)
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"own": {"class": "logging.StreamHandler", "stream": theirs, "level": "INFO"}},
            "root": {"handlers": ["own"], "level": "INFO"},
        }
    )
    logs.enable_own()
    logs.logger("worker.clerk").warning("ours", extra=logs.fields("database_away"))
    logs.logger("task").info("what a handler says")
    logging.getLogger("shop").info("theirs")
    assert [json.loads(line)["message"] for line in ours.getvalue().splitlines()] == ["ours"]
    assert theirs.getvalue().splitlines() == ["what a handler says", "theirs"]


def test_an_app_that_names_our_logger_has_our_lines() -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    logs.configure("json", "info", ours)
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"own": {"class": "logging.StreamHandler", "stream": theirs}},
            "loggers": {"pgworker": {"handlers": ["own"], "level": "INFO", "propagate": False}},
        }
    )
    logs.enable_own()
    logs.logger("worker.clerk").info("ours", extra=logs.fields("database_back"))
    assert (ours.getvalue(), theirs.getvalue()) == ("", "ours\n")


def test_basic_config_of_an_app_changes_nothing_unless_it_is_forced() -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    logs.configure("json", "info", ours)
    logging.basicConfig(stream=theirs)
    logging.getLogger("shop").warning("1")
    logging.basicConfig(stream=theirs, force=True, format="%(message)s")
    logging.getLogger("shop").warning("2")
    logs.logger("worker").warning("3", extra=logs.fields("database_away"))
    assert [json.loads(line)["message"] for line in ours.getvalue().splitlines()] == ["1", "3"]
    assert theirs.getvalue() == "2\n"


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
