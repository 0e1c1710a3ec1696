"""`pgworker bench`: figures of this machine and this server, in a database of its own."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from pgworker.cli.database import require_dsn
from pgworker.cli.options import dsn_option


@click.group()
def bench() -> None:
    """Measure pgworker on this machine."""


@bench.command(short_help="How many no-op jobs a second a pool can do.")
@click.option("--jobs", type=click.IntRange(min=1), default=50_000, show_default=True)
@click.option("-w", "--workers", type=click.IntRange(min=1), default=2, show_default=True)
@dsn_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def drain(jobs: int, workers: int, dsn: str | None, as_json: bool) -> None:
    """Enqueue no-op jobs of about 100 bytes in bulk, then let a pool drain them.

    They get a database of their own on the server of the DSN, whose user must be allowed to create one.
    """
    where = require_dsn(dsn)
    import msgspec

    from pgworker.bench.drain import measure, own_database
    from pgworker.cli.pool import start_pool
    from pgworker.config.settings import PoolSettings
    from pgworker.linux.fork import fork_child

    settings = PoolSettings(workers=workers, metrics_listen=None)

    def start(own: str) -> int:
        return fork_child(
            lambda: start_pool(own, "pgworker.bench.jobs:app", settings, starts_server=False),
            keep_fds=(), death_signal=None, blocked=(),
        )  # fmt: skip

    if sys.stderr.isatty():
        click.echo(f"enqueueing {jobs:,} jobs in a database of their own; then {workers} workers drain them", err=True)
    with own_database(where) as own:
        figures = measure(own, jobs, start, workers)
    if as_json:
        click.echo(msgspec.json.encode(asdict(figures)))
        return
    for name, value in asdict(figures).items():
        click.echo(
            f"{name.replace('_', ' '):24} {value:,.1f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):24} {value}"
        )
