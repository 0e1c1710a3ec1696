"""Logs: one event is one line on stderr, whatever is in it, as text for people or JSON for machines.

    log = logs.logger("worker.clerk")
    log.info("the database is back", extra=logs.fields("database_back"))

The fields travel in one attribute of the record, `fields`, so that code which may not import this package can write
`extra={"fields": {...}}` with the standard library alone; every name is in `vocabulary`. Rotation is the business of
whoever runs the pool.

What pgworker logs comes out whatever the app does to logging: it has a handler of its own, below the root logger's,
which is the app's to change. Who names the logger `pgworker` in a configuration has these lines too.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TextIO
from uuid import UUID

from pgworker.observe.lines import OWN, JsonLines, Lines, TextLines
from pgworker.observe.stderr import Stderr, is_journal

Level = Literal["debug", "info", "warning"]

_OF_HANDLERS: Final = f"{OWN}.task"


def logger(name: str) -> logging.Logger:
    """The logger `pgworker.<name>`."""
    return logging.getLogger(f"{OWN}.{name}")


def fields(event: str, /, **values: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call: what happened, and job, execution, task, queue, org, worker, error … of its line."""
    return {"fields": {"event": event, **values}}


def job_fields(job: UUID, execution: int, task: str | None, queue: str | None, org: str | None) -> dict[str, object]:
    """What every line about an execution of a job has, for `fields`."""
    values: dict[str, object] = {"job": job, "execution": execution, "task": task, "queue": queue}
    return values if org is None else values | {"org": org}


def configure(
    format: Literal["text", "json"] = "text",  # noqa: A002  the word on the command line
    level: Level = "info",
    stream: TextIO | None = None,
) -> None:
    """Send everything that is logged in this process, the app's and its libraries' too, to `stream` (stderr).

    `debug` is for pgworker and `ctx.logger` alone: what libraries tell at that level may be a secret. The rest is for
    the app to turn on.
    """
    handler = _handler(_lines(format, stream), stream)
    number = getattr(logging, level.upper())
    root, own, tasks = logging.getLogger(), logging.getLogger(OWN), logging.getLogger(_OF_HANDLERS)
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))
    own.handlers[:] = [handler]
    own.setLevel(number)
    own.propagate = False
    # What handlers say is the app's: it goes where the app's lines go, past our own handler.
    tasks.parent = root
    tasks.setLevel(number)
    # The driver warns of every pipeline that a lost connection ends; whoever lost it says so, once a second. A filter
    # rather than a level, which would silence the loggers below it too: the app's own connection pools.
    logging.getLogger("psycopg").addFilter(_is_serious)


def set_process(name: str, *, pool: str | None = None) -> None:
    """Which process of the pool the lines from here on are from (master, monitor, worker 3), and of which pool."""
    for handler in (*logging.getLogger().handlers, *logging.getLogger(OWN).handlers):
        if isinstance(handler.formatter, Lines):
            handler.formatter.process = name
            handler.formatter.pool = pool or handler.formatter.pool


def enable_own() -> None:
    """Undo what `logging.config.dictConfig` does by default to every logger that it does not name."""
    for name, found in list(logging.getLogger().manager.loggerDict.items()):
        if isinstance(found, logging.Logger) and (name == OWN or name.startswith(f"{OWN}.")):
            found.disabled = False


def name_jobs(job_here: Callable[[], Mapping[str, object] | None]) -> None:
    """Have every record that is made inside a job say which: `job_here` gives its fields, and never raises.

    They are in the record's attribute `pgworker`, for whatever handler and formatter the app has.
    """
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if (job := job_here()) is not None:
            record.pgworker = dict(job)
        return record

    logging.setLogRecordFactory(made)


def _lines(format: Literal["text", "json"], stream: TextIO | None) -> Lines:  # noqa: A002  as above
    if format == "json":
        return JsonLines()
    return TextLines(for_journal=stream is None and is_journal(os.environ.get("JOURNAL_STREAM")))


def _handler(lines: Lines, stream: TextIO | None) -> logging.Handler:
    handler: logging.Handler
    if stream is not None:
        handler = logging.StreamHandler(stream)
    elif sys.stderr is None:  # closed before we began: by now the number 2 may be anything
        handler = logging.NullHandler()
    else:
        handler = Stderr()
    handler.setFormatter(lines)
    return handler


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
