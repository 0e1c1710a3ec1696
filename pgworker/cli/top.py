"""`pgworker top`."""

from __future__ import annotations

import os
import sys
from contextlib import closing, suppress
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING

import click

from pgworker.cli.database import require_dsn
from pgworker.cli.options import dsn_option, time_span
from pgworker.cli.output import print_json
from pgworker.errors import ConfigurationError

if TYPE_CHECKING:
    from pgworker.top.view import Source

_LEAST_INTERVAL = 0.5  # seconds


@click.command()
@click.option(
    "--interval", type=time_span, default="2s", show_default=True, metavar="TIME", help="How often it is looked at."
)
@click.option("--once", is_flag=True, help="Print one page and end.")
@click.option("as_json", "--json", is_flag=True, help="Print a JSON object per interval; with --once, one.")
@dsn_option
def top(interval: float, once: bool, as_json: bool, dsn: str | None) -> int:
    """See all workers, queues and failures of a database, live.

    q or Ctrl-C ends it, p holds the screen. It only reads: a few bounded statements per interval, none for longer than
    5 s; when the database is away, it says how old its data is, and tries again.

    ended/s and a worker's JOBS/S are executions that ended, however they ended, over its last two or three heartbeats,
    about 10 s; CPU likewise, 100% for one CPU. So they come a few seconds late, and a page of --once has none. `failed
    in 60s` are executions that failed, timed out or crashed. IN/S are jobs that were enqueued, over 10 s. FOR is how
    long a worker's longest job has run, MEMORY what the worker shares with nobody. Numbers with a + were counted no
    further.
    """
    if interval < _LEAST_INTERVAL:
        raise click.BadParameter(f"look every {_LEAST_INTERVAL:g} s at most", param_hint="--interval")
    if not as_json and find_spec("rich") is None:
        raise ConfigurationError("top needs the package rich to draw. Install it: pip install 'pgworker[cli]'")
    if not once and not as_json:
        _require_terminal()
    where = require_dsn(dsn)
    from pgworker.config.sources import redact
    from pgworker.top.view import Source

    with closing(Source(where, redact(where))) as source:
        if as_json:
            return _print_objects(source, interval, once)
        from pgworker.top.run import print_page, run_screen

        if once:
            print_page(source)
            return 0
        return run_screen(source, interval)


def _print_objects(source: Source, interval: float, once: bool) -> int:
    from pgworker.top.view import objects

    with suppress(KeyboardInterrupt):  # it is how this ends
        for found in islice(objects(source, interval), 1 if once else None):
            print_json(found)
            sys.stdout.flush()
    return 0


def _require_terminal() -> None:
    """What can move a cursor."""
    if not sys.stdout.isatty():
        raise click.UsageError("there is no terminal to draw on: give --once for a page, or --json")
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        raise click.UsageError("TERM says that this terminal can't move its cursor: give --once for a page, or --json")
