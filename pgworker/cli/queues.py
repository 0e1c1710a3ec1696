"""`pgworker queues`: list, pause, resume, purge; and the table of queues, which `pgworker status` shows too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from pgworker.cli.bulk import Progress, confirm
from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, json_option, org_option, queue_name, task_name
from pgworker.cli.output import Column, duration, print_json, print_table
from pgworker.model.selection import JobFilter

if TYPE_CHECKING:
    from pgworker.inspection.queues import Count, QueueCounts
    from pgworker.inspection.workers import HostWorkers

_COUNTS = ("waiting", "scheduled", "running", "failed")

_COLUMNS = (
    Column("QUEUE", shrinks=True),
    *(Column(name.upper(), right=True) for name in _COUNTS),
    Column("OLDEST", right=True),
    Column("UNSERVED", right=True),
    Column("", styles={"paused": "yellow"}),
)

_names = click.argument("names", type=queue_name, nargs=-1, required=True, metavar="NAME...")


@click.group()
def queues() -> None:
    """List, pause, resume and purge queues."""


@queues.command("list")
@json_option
@dsn_option
def list_(as_json: bool, dsn: str | None) -> None:
    """What waits in each queue, and whether anybody takes it.

    Counting stops at 10000, or earlier when there are many queues: 10000+ means that many or more. `running` jobs are
    claimed by a worker, `failed` ones wait to run again, `oldest` is how long the first due job has waited, and
    `unserved` due jobs are of a queue or a task that no living worker serves.
    """
    with open_database(dsn, "queues list") as connection:
        from pgworker.inspection.queues import count_queues
        from pgworker.inspection.workers import count_workers

        counted = count_queues(connection)
        hosts = count_workers(connection)
    if as_json:
        for counts in counted:
            print_json(queue_as_json(counts))
    elif counted:
        print_queues(counted, hosts)
        if not any(host.alive for host in hosts):
            print("\nno worker is alive: `pgworker start` runs some")
    else:
        click.echo("no jobs wait or run, and no queue is paused", err=True)


@queues.command()
@_names
@dsn_option
def pause(names: tuple[str, ...], dsn: str | None) -> None:
    """Start no more jobs of these queues, in whichever pool. What runs goes on; jobs may still be enqueued."""
    with open_database(dsn, "queues pause") as connection:
        from pgworker.control.queues import pause_queues
        from pgworker.inspection.queues import find_queues

        known = find_queues(connection)
        paused = pause_queues(connection, names)
    for name in dict.fromkeys(names):
        print(f"paused {name}" if name in paused else f"{name} was paused already")
        if name not in known:
            click.echo(_unknown(name, known), err=True)


@queues.command()
@_names
@dsn_option
def resume(names: tuple[str, ...], dsn: str | None) -> None:
    """Let these queues go on, at once."""
    with open_database(dsn, "queues resume") as connection:
        from pgworker.control.queues import resume_queues

        resumed = resume_queues(connection, names)
    for name in dict.fromkeys(names):
        print(f"resumed {name}" if name in resumed else f"{name} was not paused")


@queues.command(short_help="Cancel all jobs that wait in a queue.")
@click.argument("name", type=queue_name, metavar="NAME")
@click.option("--task", type=task_name, metavar="NAME", help="Only jobs of this task.")
@org_option
@click.option("--dry-run", is_flag=True, help="Say how many it would be, and do nothing.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@dsn_option
def purge(name: str, task: str | None, org: str | None, dry_run: bool, yes: bool, dsn: str | None) -> None:
    """Cancel all jobs that wait in a queue, scheduled and failed ones too. Those that run are left alone.

    Their history says `cancelled`, purged. May be interrupted: what is gone by then stays gone, and it says how much.
    """
    chosen = JobFilter(queue=name, task=task, org_id=org, running=False)
    with open_database(dsn, "queues purge") as connection:
        from pgworker.inspection.queues import count_matching, find_queues
        from pgworker.lifecycle.purge import purge_queue

        if dry_run:
            print(f"would purge {count_matching(connection, chosen)[0]}")
        else:
            confirm(yes, lambda: f"purge {count_matching(connection, chosen)[0]} waiting jobs {chosen}")
            with Progress("purged") as progress:
                purge_queue(connection, name, task=task, org_id=org, on_progress=progress.tell)
        if name not in (known := find_queues(connection)):
            click.echo(_unknown(name, known), err=True)


def print_queues(counted: Sequence[QueueCounts], hosts: Sequence[HostWorkers]) -> None:
    """The table, and a line for each task that nobody serves, unless nobody is there at all to serve any."""
    print_table(_COLUMNS, [_row(counts) for counts in counted])
    lines = [line for counts in counted for line in _unserved(counts)]
    if lines and any(host.alive for host in hosts):
        print("\n" + "\n".join(lines))


def queue_as_json(counts: QueueCounts) -> dict[str, Any]:
    """`more`: the names of the numbers that are lower bounds."""
    numbers: dict[str, Count] = {name: getattr(counts, name) for name in _COUNTS} | {"unserved": counts.unserved_jobs}
    return {
        "queue": counts.queue,
        "paused": counts.paused,
        **{name: count.number for name, count in numbers.items()},
        "oldest_seconds": counts.oldest,
        "unserved_tasks": {one.task: one.jobs.number for one in counts.unserved},
        "more": [name for name, count in numbers.items() if count.is_more],
    }


def _row(counts: QueueCounts) -> list[str]:
    numbers = [str(getattr(counts, name)) for name in _COUNTS]
    oldest = "-" if counts.oldest is None else duration(counts.oldest)
    return [counts.queue, *numbers, oldest, str(counts.unserved_jobs), "paused" if counts.paused else ""]


def _unserved(counts: QueueCounts) -> Iterator[str]:
    if any(not one.is_queue_served for one in counts.unserved):
        jobs = counts.unserved_jobs
        yield f"queue {counts.queue}: {jobs} due, and no living worker serves this queue; is its name right?"
        return
    for one in counts.unserved:
        yield (
            f"queue {counts.queue}: {one.jobs} due of task {one.task}, which no living worker serves; "
            "is it deployed, is its name right?"
        )


def _unknown(name: str, known: Collection[str]) -> str:
    told = f"no job waits in queue {name} and no worker serves it"
    close = get_close_matches(name, known, n=1)
    return f"{told}; did you mean {close[0]}?" if close else told
