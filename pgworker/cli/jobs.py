"""`pgworker jobs`: list, show, cancel."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, filter_options, json_option, whole_uuid
from pgworker.cli.output import Column, duration, print_json, print_table
from pgworker.model.state import CancelAnswer, Status

if TYPE_CHECKING:
    from pgworker.inspection.jobs import JobDetail

STATUS_STYLES = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "yellow",
    "dead_letter": "red",
    "LOST": "bold red",
}

_COLUMNS = (
    Column("ID"),
    Column("STATUS", styles=STATUS_STYLES),
    Column("QUEUE", shrinks=True),
    Column("TASK", shrinks=True),
    Column("AGE", right=True),
)


@click.group()
def jobs() -> None:
    """List, show and cancel jobs."""


@jobs.command("list")
@filter_options
@click.option(
    "statuses",
    "--status",
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    multiple=True,
    help="Only jobs of this status; may be repeated.",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N")
@json_option
@dsn_option
def list_(
    queue: str | None, task: str | None, statuses: tuple[str, ...], limit: int, as_json: bool, dsn: str | None
) -> None:
    """The newest jobs first.

    `failed` will run again; what has used up its attempts is a `dead_letter`. `running` jobs are claimed by a worker,
    which may hold some more than it runs at this moment.
    """
    with open_database(dsn, "jobs list") as connection:
        from pgworker.inspection.jobs import list_jobs

        found = list_jobs(
            connection, queue=queue, task=task, statuses=[Status(status) for status in statuses], limit=limit
        )
    if as_json:
        for job in found:
            print_json(job)
    elif found:
        print_table(_COLUMNS, [[str(job.id), job.status, job.queue, job.task, duration(job.age)] for job in found])
    else:
        click.echo("no such jobs", err=True)


@jobs.command()
@click.argument("job_id", type=whole_uuid, metavar="ID")
@json_option
@dsn_option
def show(job_id: UUID, as_json: bool, dsn: str | None) -> None:
    """One job: what it is, where it runs, and how each execution ended."""
    with open_database(dsn, "jobs show") as connection:
        from pgworker.inspection.jobs import show_job

        detail = show_job(connection, job_id)
    if as_json:
        print_json(_as_json(detail))
    else:
        from pgworker.cli.job_page import job_page

        print("\n".join(job_page(detail)))


@jobs.command()
@click.argument("job_id", type=whole_uuid, metavar="ID")
@dsn_option
def cancel(job_id: UUID, dsn: str | None) -> int:
    """Cancel a job. The exit code is 1 if it was too late."""
    with open_database(dsn, "jobs cancel") as connection:
        from pgworker.lifecycle.cancel import cancel_job

        answer = cancel_job(connection, job_id)
    said = {
        CancelAnswer.CANCELLED: "it waited, and will never run",
        CancelAnswer.REQUESTED: "it is claimed by a worker, which was asked to stop it",
        CancelAnswer.TOO_LATE: "it had ended already; `pgworker jobs show` says how",
    }
    print(f"{answer.value}: {said[answer]}")
    return 1 if answer is CancelAnswer.TOO_LATE else 0


def _as_json(detail: JobDetail) -> dict[str, Any]:
    import msgspec

    def raw(text: str | None) -> msgspec.Raw | None:
        return None if text is None else msgspec.Raw(text.encode())

    job = dataclasses.asdict(detail.job)
    return {
        **job,
        "failures": detail.failures,
        "payload": raw(detail.job.payload),
        "headers": raw(detail.job.headers),
        "claim": detail.claim,
        "executions": [
            {**dataclasses.asdict(ended), "error": raw(ended.error), "result": raw(ended.result)}
            for ended in detail.executions
        ],
    }
