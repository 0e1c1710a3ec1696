"""`pgworker config`."""

from __future__ import annotations

import os
from typing import Any

import click

from pgworker.cli.database import default_workers, sources
from pgworker.cli.options import config_option, json_option
from pgworker.cli.output import Column, print_json, print_table
from pgworker.config.layers import Setting, configure, likely_typos
from pgworker.config.options import OPTIONS, Option
from pgworker.config.sources import redact
from pgworker.config.token import NoToken


@click.group()
def config() -> None:
    """Show every setting and where it comes from."""


@config.command(short_help="Every setting of `pgworker start` in this directory.")
@click.option("--origin", is_flag=True, help="Also where each value comes from.")
@json_option
@config_option
def show(origin: bool, as_json: bool) -> None:
    """What `pgworker start` would go by, without flags, in this directory and environment.

    Files that hold the DSN or the token of /metrics are not read.
    """
    found = configure(sources({}), workers=default_workers()).origins
    if as_json:
        for option in OPTIONS:
            print_json(_object(option, found[option.key], with_origin=origin))
    else:
        columns = [Column("SETTING"), Column("VALUE", shrinks=True), Column("ORIGIN", shrinks=True)]
        rows = [[option.key, _shown(option, found[option.key]), found[option.key].origin] for option in OPTIONS]
        shown = len(columns) if origin else len(columns) - 1
        print_table(columns[:shown], [row[:shown] for row in rows])
    for typo in likely_typos(os.environ):
        click.echo(f"pgworker: mind that {typo}", err=True)


def _object(option: Option, setting: Setting, *, with_origin: bool) -> dict[str, Any]:
    value = redact(setting.value) if option.key == "dsn" and setting.value is not None else setting.value
    if isinstance(value, NoToken):
        value = value.value
    return {"setting": option.key, "value": value} | ({"origin": setting.origin} if with_origin else {})


def _shown(option: Option, setting: Setting) -> str:
    if setting.value in ("", NoToken.UNSAID) or (setting.value is None and not option.is_of_the_pool):
        return "-"
    return redact(setting.value) if option.key == "dsn" else option.kind.show(setting.value)
