"""`pgworker start`: its options are those of `config.options`, and what it runs is in `cli/pool.py`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import click

from pgworker.cli.database import default_workers, no_app, no_database, sources
from pgworker.cli.options import as_option, config_option
from pgworker.config.kinds import NAMES, SWITCH
from pgworker.config.layers import configure
from pgworker.config.options import EMBEDDED_DIRECTORY, OPTIONS, Option

_Decorator = Callable[[Any], Any]


class SectionedCommand(click.Command):
    """Its help lists the options of `config.options` under the titles of their sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {parameter.name: parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        for title, options in groupby(OPTIONS, key=lambda option: option.section):
            with formatter.section(title):
                formatter.write_dl([record for option in options if (record := records.pop(option.key))])
        with formatter.section("Other options"):
            formatter.write_dl([record for record in records.values() if record])


def _pool_options(command: Any) -> Any:
    for option in reversed(OPTIONS):
        command = _click_option(option)(command)
    return command


def _click_option(option: Option) -> _Decorator:
    """It passes on what was written, once that can be read: None if nothing was, so that other layers are asked."""
    given: dict[str, Any] = {"metavar": option.metavar or None, "type": _form(option)}
    if option.kind is SWITCH:
        given = {"default": None}
    elif option.kind is NAMES:
        given["multiple"] = True
    elif option.key == "embedded":
        given |= {"is_flag": False, "flag_value": EMBEDDED_DIRECTORY}
    return click.option(*option.flags, option.key, help=option.help + _default(option), **given)


def _form(option: Option) -> Any:
    if option.kind.words:
        return click.Choice(option.kind.words)
    if option.key in ("dsn_file", "metrics_token_file"):
        return click.Path()

    def as_written(text: str) -> str:
        as_option(option.kind.parse, text)
        return text

    return as_written


def _default(option: Option) -> str:
    value = option.default_value
    shown = option.default or (option.kind.show(value) if value not in (None, False) else "")
    return f"  [{shown}]" if shown else ""


@click.command("start", cls=SectionedCommand)
@_pool_options
@config_option
def start(**flags: Any) -> None:
    """Run a pool of workers until TERM or Ctrl-C.

    --drain-timeout is PGWORKER_DRAIN_TIMEOUT and drain_timeout in pgworker.toml too; likewise the others. Flags go
    before variables, variables before pgworker.toml and [tool.pgworker] of pyproject.toml in this directory.
    """
    configuration = configure(sources(flags), workers=default_workers())
    if configuration.app is None:
        raise no_app()
    dsn = configuration.read_dsn()
    if dsn is None:
        raise no_database()
    from pgworker.cli.pool import start_pool

    raise SystemExit(
        start_pool(dsn, configuration.app, configuration.settings, starts_server=configuration.starts_server)
    )
