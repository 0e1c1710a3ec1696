"""`pgworker demo`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from pgworker.cli.output import print_json


@click.command()
@click.option(
    "--embedded",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the private PostgreSQL lives; it stays there.  [a temporary directory]",
)
@click.option("--keep", is_flag=True, help="Keep the temporary directory, to look into its database afterwards.")
@click.option(
    "-w", "--workers", type=click.IntRange(1, 64), default=None, help="Worker processes.  [the CPUs we have, 2 to 8]"
)
@click.option("as_json", "--json", is_flag=True, help="Print the result as one JSON object.")
def demo(directory: Path | None, keep: bool, workers: int | None, as_json: bool) -> int:
    """See a pool at work on a private PostgreSQL.

    It reads every file of this machine's standard library, one job each, while some jobs fail, hang, crash or are
    cancelled and a worker is killed; then it drains and is checked against a plain loop over the same files. The exit
    code is 0 only if nothing was lost, nothing was done twice and every death is explained.
    """
    from pgworker.cli.pool import start_pool
    from pgworker.config.settings import PoolSettings
    from pgworker.demo.run import APP, DemoOptions, default_demo_workers, run_demo

    def run_pool(dsn: str, settings: PoolSettings) -> int:
        return start_pool(dsn, APP, settings, starts_server=False)

    printer = print_json if as_json else None
    options = DemoOptions(directory, keep, workers or default_demo_workers(), _program(), printer)
    return run_demo(options, run_pool)


def _program() -> str:
    """How to call this command again: by its name if that finds it, else as it was called."""
    called = sys.argv[0]
    if Path(called).name != "pgworker":
        return f"{sys.executable} -m pgworker"
    found = shutil.which("pgworker")
    return "pgworker" if found is not None and Path(found).samefile(called) else called
