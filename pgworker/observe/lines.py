"""A log record as one line, whatever is in it: text for people, or JSON for machines."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final

from pgworker.model.display import printable
from pgworker.model.names import host_name
from pgworker.model.payload import describe_error

MAX_VALUE: Final = 16 << 10
"""Characters of a field; the rest is cut off."""

OWN: Final = "pgworker"
"""The logger above all of ours."""

_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_OF_EVERY_RECORD: Final = frozenset(
    {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName", "fields", "pgworker"}
)


class Lines(logging.Formatter):
    """Never raises: logging answers that with a traceback of many lines."""

    def __init__(self) -> None:
        super().__init__()
        self.process = "pgworker"
        self.pool: str | None = None
        self.host = host_name()

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self.line(record, _message(record), dict(_fields(record)))
        except Exception as error:  # noqa: BLE001  an unwritable record is one line too, and never an error of its own
            note = {"problem": f"this record can't be written: {type(error).__name__}"}
            return self.line(record, f"{record.filename}:{record.lineno}", note)

    def line(self, record: logging.LogRecord, message: str, fields: dict[str, Any]) -> str:
        raise NotImplementedError


class TextLines(Lines):
    """`2026-11-21T10:00:00.123456Z INFO  worker 3  sentence  event=name key=value key="va lue" host=name`.

    For the journal without the time, which it has itself, and with the priority that it takes from a line's beginning.
    """

    def __init__(self, *, for_journal: bool = False) -> None:
        super().__init__()
        self._for_journal = for_journal

    def line(self, record: logging.LogRecord, message: str, fields: dict[str, Any]) -> str:
        start = f"<{_priority(record)}>" if self._for_journal else f"{_timestamp(record)} "
        head = f"{start}{record.levelname:<5} {self.process}  {message}"
        ours = record.name == OWN or record.name.startswith(f"{OWN}.")
        told = fields | ({} if ours else {"logger": record.name}) | {"host": self.host}
        return printable(f"{head}  " + " ".join(f"{name}={_quoted(value)}" for name, value in told.items()))


class JsonLines(Lines):
    """An ASCII JSON object: first what every line has, then the fields; of these another `pid` becomes `pid_`."""

    def line(self, record: logging.LogRecord, message: str, fields: dict[str, Any]) -> str:
        event = fields.pop("event", None)
        fixed = {
            "time": _timestamp(record),
            "level": record.levelname,
            **({} if event is None else {"event": _json_value(event)}),
            "message": _encodable(message),
            "process": self.process,
            "host": _encodable(self.host),
            **({} if self.pool is None else {"pool": self.pool}),
            "pid": record.process,
            "logger": _encodable(record.name),
        }
        free = {_encodable(name): _json_value(value) for name, value in fields.items()}
        again = {name for name, value in free.items() if name in fixed and value == fixed[name]}
        renamed = {f"{name}_" if name in fixed else name: value for name, value in free.items() if name not in again}
        return json.dumps(fixed | renamed)


def _priority(record: logging.LogRecord) -> int:
    """As in syslog(3); higher is less."""
    return next((number for level, number in _PRIORITIES if record.levelno >= level), 7)


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return _clipped(record.getMessage())
    except Exception:  # noqa: BLE001  arguments that don't fit the format, or whose __str__ raises: keep the sentence
        return _clipped(_text(record.msg))


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """Those of the call, its other `extra` too; then those of the job that runs here, unless the call names one."""
    given = getattr(record, "fields", None)
    named = dict(given) if isinstance(given, dict) else {}
    named |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
    if "job" not in named:
        running = getattr(record, "pgworker", None)
        named |= running if isinstance(running, dict) else {}
    for name, value in named.items():
        yield _text(name), value if type(value) in _AS_THEY_ARE else _clipped(_text(value))
    if record.exc_info and record.exc_info[1] is not None:
        told = describe_error(record.exc_info[1], limit=MAX_VALUE)
        yield "error", f"{told['type']}: {told['message']}"
        yield "exception", told["traceback"]
    if record.stack_info:
        yield "stack", _clipped(record.stack_info)


_AS_THEY_ARE = frozenset({bool, int, float, type(None)})
_MAX_INTEGER = 1 << 63


def _text(value: object) -> str:
    try:
        return str.__str__(str(value))
    except Exception as error:  # noqa: BLE001  a __str__ that raises
        return f"(its __str__ raised {type(error).__name__})"


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}… ({len(text) - MAX_VALUE} characters more)"


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or abs(value) < _MAX_INTEGER else _text(value)


def _encodable(text: str) -> str:
    """Without lone surrogates, which strict parsers refuse even escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _quoted(value: Any) -> str:
    text = _text(value)
    if text and text.isprintable() and not any(sign in text for sign in ' "=\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
