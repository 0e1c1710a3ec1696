"""`pgworker status`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, json_option
from pgworker.cli.output import Column, duration, print_json, print_table
from pgworker.cli.queues import print_queues, queue_as_json

if TYPE_CHECKING:
    from pgworker.inspection.database import SchemaVersion
    from pgworker.inspection.queues import Count, QueueCounts
    from pgworker.inspection.workers import HostWorkers

_HOSTS = (
    Column("HOST", shrinks=True),
    Column("ALIVE", right=True),
    Column("SILENT", right=True),
    Column("LAST BEAT", right=True),
)


@click.command()
@json_option
@dsn_option
def status(as_json: bool, dsn: str | None) -> None:
    """Queues, workers and dead letters at a glance.

    Counting stops at 10000, or earlier when there are many queues: 10000+ means that many or more. `running` jobs are
    claimed by a worker, `failed` ones wait to run again, `oldest` is how long the first due job has waited, and
    `unserved` due jobs are of a queue or a task that no living worker serves.
    """
    with open_database(dsn, "status") as connection:
        from pgworker.inspection.database import read_schema_version
        from pgworker.inspection.dead_letters import count_dead_letters
        from pgworker.inspection.queues import count_queues
        from pgworker.inspection.workers import count_workers

        queues = count_queues(connection)
        hosts = count_workers(connection)
        dead = count_dead_letters(connection)
        schema = read_schema_version(connection)
    if as_json:
        print_json(_as_json(queues, hosts, dead, schema))
    else:
        _print_page(queues, hosts, dead, schema)


def _print_page(queues: list[QueueCounts], hosts: list[HostWorkers], dead: Count, schema: SchemaVersion) -> None:
    if queues:
        print_queues(queues, hosts)
    else:
        print("no jobs wait or run")
    print()
    if hosts:
        rows = [[host.host, str(host.alive), str(host.silent), f"{duration(host.last_beat)} ago"] for host in hosts]
        print_table(_HOSTS, rows)
    else:
        print("no workers: `pgworker start` runs some")
    print()
    print(f"dead letters: {dead}")
    print(f"schema: {schema.name}")


def _as_json(queues: list[QueueCounts], hosts: list[HostWorkers], dead: Count, schema: SchemaVersion) -> dict[str, Any]:
    return {
        "queues": [queue_as_json(counts) for counts in queues],
        "hosts": [dataclasses.asdict(host) for host in hosts],
        "dead_letters": dead.number,
        "dead_letters_is_more": dead.is_more,
        "schema": dataclasses.asdict(schema),
    }
