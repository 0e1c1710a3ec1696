"""Options and arguments that several commands share, each checked before anything is connected.

The types are functions that raise click.BadParameter: click.ParamType is generic in some of its releases only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import click

from pgworker.errors import InvalidFilter, InvalidJob
from pgworker.model.names import check_queue, check_task
from pgworker.model.selection import JobFilter

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([smhd]?)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGTkmgt]?)(?:i?[Bb])?")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def whole_uuid(text: str) -> UUID:
    """A whole UUID, as every command prints it."""
    if not _UUID.fullmatch(text):
        hint = "give all 36 characters, as `pgworker jobs list` prints them"
        raise click.BadParameter(f"{text!r} is not a job id: {hint}")
    return UUID(text)


def queue_name(text: str) -> str:
    """What a queue may be called."""
    return _named(check_queue, text)


def task_name(text: str) -> str:
    """What a task may be called."""
    return _named(check_task, text)


def time_span(text: str) -> float:
    """Seconds, of a number of them or of one with a unit: 30, 0.5, 30s, 5m, 1h, 2d."""
    parts = _TIME.fullmatch(text.strip())
    if parts is None:
        raise click.BadParameter(f"{text!r} is no time: give seconds, or a number with s, m, h or d, such as 30s or 5m")
    return float(parts[1]) * _SECONDS[parts[2] or "s"]


def byte_size(text: str) -> int:
    """Bytes, of a number of them or of one with a unit, each 1024 of the one before: 512M, 1.5G."""
    parts = _SIZE.fullmatch(text.strip())
    if parts is None:
        raise click.BadParameter(f"{text!r} is no size: give a number with K, M, G or T, such as 512M or 2G")
    return int(float(parts[1]) * 1024 ** "BKMGT".index(parts[2].upper() or "B"))


def org_id(text: str) -> str:
    """What an organisation may be called."""
    try:
        return JobFilter(org_id=text).org_id or ""
    except InvalidFilter as error:
        raise click.BadParameter(str(error)) from None


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


def org_option(command: _Command) -> _Command:
    """--org, likewise."""
    return click.option("--org", type=org_id, metavar="ID", help="Only jobs of this organisation.")(command)
