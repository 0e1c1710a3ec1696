"""`pgworker prune`."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import click

from pgworker.cli.bulk import still
from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, json_option, time_span
from pgworker.cli.output import Column, duration, print_json, print_table, size

if TYPE_CHECKING:
    from pgworker.db.connect import Connection
    from pgworker.lifecycle.prune import PrunedPartition

_PAUSE = (1.0, 3.0)
"""Seconds between two tries, at random: claims wait for each of them for up to 50 ms."""

_COLUMNS = (
    Column("PARTITION", shrinks=True),
    Column("JOBS", right=True),
    Column("EXECUTIONS", right=True),
    Column("KEPT", right=True),
    Column("SIZE", right=True),
    Column("", styles={"busy": "red"}),
)


@click.command()
@click.option(
    "--older-than",
    type=time_span,
    default="7d",
    show_default=True,
    metavar="AGE",
    help="At least 1d: 36h, 7d, 30d.",
)
@click.option(
    "--wait",
    type=time_span,
    default="1m",
    show_default=True,
    metavar="TIME",
    help="How long to try again while a long transaction is in the way.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be dropped.")
@json_option
@dsn_option
def prune(older_than: float, wait: float, dry_run: bool, as_json: bool, dsn: str | None) -> int:
    """Drop the history of days that have expired.

    Pools do so themselves, once an hour, with their own --retention. What waits or runs is kept, and so is what has
    ended within the last day. The exit code is 1 if nothing could be dropped.
    """
    from pgworker.lifecycle.prune import PruneAction, check_retention

    check_retention(older_than, "--older-than")
    with open_database(dsn, "prune") as connection:
        pruned = _prune(connection, older_than, wait, dry_run)
    if as_json:
        for partition in pruned:
            print_json(partition)
    elif pruned:
        print_table(_COLUMNS, [_row(partition) for partition in pruned])
    else:
        click.echo("nothing has expired", err=True)
    busy = [partition for partition in pruned if partition.action is PruneAction.BUSY]
    if busy:
        click.echo(f"nothing was dropped: {busy[0].why}. Try again later, or with a longer --wait", err=True)
    return int(bool(busy))


def _prune(connection: Connection, older_than: float, wait: float, dry_run: bool) -> list[PrunedPartition]:
    from pgworker.lifecycle.prune import PruneAction, prune

    ends = time.monotonic() + wait
    is_said = False
    while True:
        with still("looking for what has expired" if dry_run else "pruning"):
            pruned = prune(connection, older_than, dry_run=dry_run)
        busy = [partition for partition in pruned if partition.action is PruneAction.BUSY]
        pause = random.uniform(*_PAUSE)
        if not busy or time.monotonic() + pause > ends:
            return pruned
        if not is_said:
            is_said = True
            click.echo(f"{busy[0].why}; trying again for {duration(wait)}", err=True)
        time.sleep(pause)


def _row(partition: PrunedPartition) -> list[str]:
    counts = [f"{count:,}" for count in (partition.jobs, partition.executions, partition.kept)]
    return [partition.name, *counts, size(partition.bytes), partition.action.value]
