"""Options and arguments that several commands share, each checked before anything is connected.

The types are functions that raise click.BadParameter: click.ParamType is generic in some of its releases only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import click

from pgworker.errors import InvalidJob
from pgworker.model.names import check_queue, check_task

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DURATION = re.compile(r"(?P<number>[0-9]{1,12}(\.[0-9]{1,9})?)(?P<unit>[smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def whole_uuid(text: str) -> UUID:
    """A whole UUID, as every command prints it."""
    if not _UUID.fullmatch(text):
        hint = "give all 36 characters, as `pgworker jobs list` prints them"
        raise click.BadParameter(f"{text!r} is not a job id: {hint}")
    return UUID(text)


def length_of_time(text: str) -> float:
    """Seconds, of `90`, `90s`, `15m`, `36h` or `7d`."""
    written = _DURATION.fullmatch(text)
    if not written:
        raise click.BadParameter(f"{text!r} is not a duration: give seconds, or a number with s, m, h or d, such as 7d")
    return float(written["number"]) * _UNITS[written["unit"]]


def queue_name(text: str) -> str:
    """What a queue may be called."""
    return _named(check_queue, text)


def task_name(text: str) -> str:
    """What a task may be called."""
    return _named(check_task, text)


def _named(check: Callable[[object], str], text: str) -> str:
    try:
        return check(text)
    except InvalidJob as error:
        raise click.BadParameter(str(error)) from None


def dsn_option(command: _Command) -> _Command:
    """--dsn, for every command that talks to the database."""
    help_text = "The database: postgresql://…, host=… dbname=…, or embedded:DIR.  [PGWORKER_DSN, DATABASE_URL]"
    return click.option("--dsn", metavar="DSN", help=help_text)(command)


def json_option(command: _Command) -> _Command:
    """--json, for every command that reads."""
    return click.option("as_json", "--json", is_flag=True, help="Print JSON: one object a line.")(command)


def filter_options(command: _Command) -> _Command:
    """-q and --task, for commands that choose jobs."""
    command = click.option("--task", type=task_name, metavar="NAME", help="Only jobs of this task.")(command)
    return click.option("-q", "--queue", type=queue_name, metavar="NAME", help="Only jobs of this queue.")(command)
