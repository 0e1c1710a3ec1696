"""Logs: one event is one line on stderr, whatever is in it, as text for people or JSON for machines.

    log = logs.logger("worker.clerk")
    log.info("lease lost", extra=logs.fields(job=job_id, task="send_mail"))

The fields travel in one attribute of the record, `fields`, so that code which may not import this package can write
`extra={"fields": {...}}` with the standard library alone. Rotation is the business of whoever runs the pool.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

from pgworker.model.payload import describe_error

MAX_VALUE = 16 << 10
"""Characters of a field; the rest is cut off."""


def logger(name: str) -> logging.Logger:
    """The logger `pgworker.<name>`."""
    return logging.getLogger(f"pgworker.{name}")


def fields(**values: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call: job, execution, task, queue, org, worker, error … as fields of its line."""
    return {"fields": values}


def configure(
    format: Literal["text", "json"] = "text",  # noqa: A002  the word on the command line
    level: int | str = logging.INFO,
    stream: TextIO | None = None,
) -> None:
    """Send everything that is logged in this process, the app's and its libraries' too, to `stream` (stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The driver warns of every pipeline that a lost connection ends; whoever lost it says so, once a second. A filter
    # rather than a level, which would silence the loggers below it too: the app's own connection pools.
    logging.getLogger("psycopg").addFilter(_is_serious)


def set_process(name: str) -> None:
    """Which process of the pool the lines from here on are from: master, monitor, worker 3."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Lines):
            handler.formatter.process = name


def _is_serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class Throttle:
    """Passes one message per key and interval, and counts the others. It keeps every key: use few and constant ones.

    if (more := throttle.admit("database away")) is not None:
        log.warning("the database is away%s", more)
    """

    def __init__(self, *, interval: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._keys: dict[str, tuple[float, int]] = {}

    def admit(self, key: str) -> str | None:
        """None if this one is to be left out; else what to add to it: "" or " (12 more like this)"."""
        now = self._clock()
        last, held_back = self._keys.get(key, (-math.inf, 0))
        if now - last < self._interval:
            self._keys[key] = (last, held_back + 1)
            return None
        self._keys[key] = (now, 0)
        return f" ({held_back} more like this)" if held_back else ""


class _Lines(logging.Formatter):
    """A record as one line. Never raises: logging answers that with a traceback of many lines."""

    def __init__(self) -> None:
        super().__init__()
        self.process = "pgworker"

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self.line(record, _event(record), dict(_extra(record)))
        except Exception as error:  # noqa: BLE001  an unwritable record is one line too, and never an error of its own
            note = {"problem": f"this record can't be written: {type(error).__name__}"}
            return self.line(record, f"{record.filename}:{record.lineno}", note)

    def line(self, record: logging.LogRecord, event: str, extra: dict[str, Any]) -> str:
        raise NotImplementedError


class TextLines(_Lines):
    """`2026-11-21T10:00:00.123Z INFO  worker 3  sentence  key=value key="va lue"`."""

    def line(self, record: logging.LogRecord, event: str, extra: dict[str, Any]) -> str:
        head = f"{_timestamp(record)} {record.levelname:<5} {self.process}  {event}"
        pairs = " ".join(f"{name}={_quoted(value)}" for name, value in extra.items())
        return _escaped(f"{head}  {pairs}" if pairs else head)


class JsonLines(_Lines):
    """An ASCII JSON object of ts, level, event, process, pid, logger and the fields; a field pid becomes `pid_`."""

    def line(self, record: logging.LogRecord, event: str, extra: dict[str, Any]) -> str:
        fixed = {
            "ts": _timestamp(record),
            "level": record.levelname,
            "event": _encodable(event),
            "process": self.process,
            "pid": record.process,
            "logger": _encodable(record.name),
        }
        free = {_encodable(name): _json_value(value) for name, value in extra.items()}
        renamed = {f"{name}_" if name in fixed else name: value for name, value in free.items()}
        return json.dumps(fixed | renamed)


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _event(record: logging.LogRecord) -> str:
    try:
        return _clipped(record.getMessage())
    except Exception:  # noqa: BLE001  arguments that don't fit the format, or whose __str__ raises: keep the sentence
        return _clipped(_text(record.msg))


def _extra(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    values = getattr(record, "fields", None)
    if isinstance(values, dict):
        for name, value in values.items():
            yield _text(name), value if type(value) in _AS_THEY_ARE else _clipped(_text(value))
    if record.exc_info and record.exc_info[1] is not None:
        told = describe_error(record.exc_info[1], limit=MAX_VALUE)
        yield "error", f"{told['type']}: {told['message']}"
        yield "traceback", told["traceback"]
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


def _escaped(text: str) -> str:
    """With an escape for whatever could end the line or move the cursor: controls, separators, surrogates."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
