"""`pgworker workers`: who is alive, on which host, and what each does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, json_option
from pgworker.cli.output import Column, duration, hint, print_json, print_table, size

if TYPE_CHECKING:
    from pgworker.inspection.workers import WorkerRow

_COLUMNS = (
    Column("HOST", shrinks=True),
    Column("WORKER", right=True),
    Column("PID", right=True),
    Column("STATE", styles={"busy": "cyan", "silent": "red", "paused": "yellow", "draining": "yellow"}),
    Column("RUNS", shrinks=True),
    Column("FOR", right=True),
    Column("MEM", right=True),
    Column("CPU", right=True),
    Column("UP", right=True),
    Column("BEAT", right=True),
)


@click.command()
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, metavar="N")
@json_option
@dsn_option
def workers(limit: int, as_json: bool, dsn: str | None) -> None:
    """The worker processes of all hosts that have not ended, as of their last heartbeats, which come every 5 s.

    WORKER is its number in its pool. RUNS has the task of the job that has run for longest, and FOR how long; +2: two
    more run beside it. MEM is memory that it shares with no other process, CPU the time it has used. One that is
    `paused` claims nothing, since USR2 to its master, and may still run what it has. Who has not been heard of for 15 s
    is `silent`, after a day it is left out. --json has the jobs' ids.
    """
    with open_database(dsn, "workers") as connection:
        from pgworker.inspection.database import read_clock
        from pgworker.inspection.workers import list_workers

        found = list_workers(connection, limit=limit)
        now = read_clock(connection)
    if as_json:
        for worker in found:
            print_json({**dataclasses.asdict(worker), "is_silent": worker.is_silent})
    elif found:
        print_table(_COLUMNS, [_row(worker, (now - worker.started_at).total_seconds()) for worker in found])
    else:
        click.echo("no worker is alive: `pgworker start` runs some", err=True)
    if len(found) == limit:
        hint(f"there may be more: --limit {10 * limit}")


def _row(worker: WorkerRow, up: float) -> list[str]:
    longest = max(worker.runs, key=lambda run: run.seconds, default=None)
    more = f" +{len(worker.runs) - 1}" if len(worker.runs) > 1 else ""
    return [
        worker.host,
        str(worker.number),
        str(worker.pid),
        "silent" if worker.is_silent else worker.state or "-",
        "-" if longest is None else f"{longest.task}{more}",
        "-" if longest is None else duration(longest.seconds),
        "-" if worker.uss_bytes is None else size(worker.uss_bytes),
        "-" if worker.cpu_seconds is None else duration(worker.cpu_seconds),
        duration(up),
        duration(worker.beat_age),
    ]
