"""Options and arguments that several commands share, each checked before anything is connected.

The types are functions that raise click.BadParameter: click.ParamType is generic in some of its releases only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import click

from pgworker.config.kinds import parse_time
from pgworker.config.layers import CONFIG_VARIABLE
from pgworker.errors import ConfigurationError, InvalidFilter, InvalidJob
from pgworker.model.names import check_queue, check_task
from pgworker.model.selection import JobFilter

_CONFIG = "pgworker.config"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Value = TypeVar("_Value")


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
    return as_option(parse_time, text)


def as_option(parse: Callable[[str], _Value], text: str) -> _Value:
    """What `parse` makes of it; its ConfigurationError is a mistake in the command line here."""
    try:
        return parse(text)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


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
    """--dsn and --config, for every command that talks to the database."""
    help_text = "The database: postgresql://…, host=… dbname=…, or embedded:DIR.  [PGWORKER_DSN, DATABASE_URL]"
    return config_option(click.option("--dsn", metavar="DSN", help=help_text)(command))


def config_option(command: _Command) -> _Command:
    """--config, which the command has no parameter for: `pgworker.cli.database.sources` knows."""
    return click.option(
        "--config",
        type=click.Path(),
        metavar="FILE",
        expose_value=False,
        callback=_remember_config,
        help=f"Read this file, not pgworker.toml.  [{CONFIG_VARIABLE}]",
    )(command)


def named_config() -> str | None:
    """What --config names, in the command that runs or the group that it is of."""
    context = click.get_current_context(silent=True)
    named = context.meta.get(_CONFIG) if context is not None else None
    return named if isinstance(named, str) else None


def _remember_config(context: click.Context, _parameter: click.Parameter, named: str | None) -> None:
    if named is not None:
        context.meta[_CONFIG] = named


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
