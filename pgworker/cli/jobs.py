"""`pgworker jobs`: list, show, cancel, and what has a module of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pgworker.cli.bulk import Progress, confirm, tell_of_each
from pgworker.cli.database import open_database
from pgworker.cli.job_explain import explain
from pgworker.cli.job_retry import retry
from pgworker.cli.job_run import run
from pgworker.cli.options import dsn_option, filter_options, json_option, org_option, time_span, whole_uuid
from pgworker.cli.output import Column, duration, hint, print_json, print_table
from pgworker.model.selection import JobFilter
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
    """List, show, explain, retry, cancel and run jobs."""


for _command in (explain, retry, run):
    jobs.add_command(_command)


@jobs.command("list")
@filter_options
@org_option
@click.option(
    "statuses",
    "--status",
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    multiple=True,
    metavar="STATUS",
    help=f"Only jobs of this status; may be repeated: {', '.join(status.value for status in Status)}.",
)
@click.option("--before", type=whole_uuid, metavar="ID", help="Only jobs that are older than this one.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N")
@json_option
@dsn_option
def list_(
    queue: str | None,
    task: str | None,
    org: str | None,
    statuses: tuple[str, ...],
    before: UUID | None,
    limit: int,
    as_json: bool,
    dsn: str | None,
) -> None:
    """The newest jobs first.

    `failed` will run again; what has used up its attempts is a `dead_letter`. `running` jobs are claimed by a worker,
    which may hold some more than it runs at this moment. `LOST` ones are nowhere, which should never be: please report
    them as a bug of pgworker.
    """
    with open_database(dsn, "jobs list") as connection:
        from pgworker.inspection.jobs import list_jobs

        wanted = [Status(status) for status in statuses]
        found = list_jobs(connection, queue=queue, task=task, org_id=org, statuses=wanted, before=before, limit=limit)
    if as_json:
        for job in found:
            print_json(job)
    elif found:
        print_table(_COLUMNS, [[str(job.id), job.status, job.queue, job.task, duration(job.age)] for job in found])
    else:
        click.echo("no such jobs", err=True)
    if len(found) == limit:
        hint(f"there may be more: --before {found[-1].id}")


@jobs.command()
@click.argument("job_id", type=whole_uuid, metavar="ID")
@json_option
@dsn_option
def show(job_id: UUID, as_json: bool, dsn: str | None) -> None:
    """One job: what it is, where it runs, and how each execution ended."""
    with open_database(dsn, "jobs show") as connection:
        from pgworker.inspection.facts import read_facts

        facts = read_facts(connection, job_id, executions=100)
    from pgworker.inspection.explain import explain as explained

    found = explained(facts)
    if as_json:
        print_json({**_as_json(facts.detail), "reason": found.reason.value, "explanation": found.sentence})
    else:
        from pgworker.cli.job_page import job_page

        print("\n".join(job_page(facts.detail, found.sentence)))


@jobs.command(short_help="Cancel jobs: by their ids, or all of a queue, a task.")
@click.argument("job_ids", type=whole_uuid, nargs=-1, metavar="[ID]...")
@filter_options
@org_option
@click.option("--older-than", type=time_span, metavar="AGE", help="Only jobs enqueued longer ago: 90s, 1h, 7d.")
@click.option("--waiting-only", is_flag=True, help="Leave alone what a worker has claimed.")
@click.option("--running-only", is_flag=True, help="Leave alone what waits.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@dsn_option
def cancel(
    job_ids: tuple[UUID, ...],
    queue: str | None,
    task: str | None,
    org: str | None,
    older_than: float | None,
    waiting_only: bool,
    running_only: bool,
    yes: bool,
    dsn: str | None,
) -> int:
    """Cancel jobs: those that are named by their ids, or all that the options leave.

    What waits will never run; what is claimed by a worker is asked to stop, and killed if it doesn't. By ids, the exit
    code is 1 if it was too late for any.
    """
    given = queue is not None or task is not None or org is not None or older_than is not None
    if bool(job_ids) == given or (job_ids and (waiting_only or running_only)):
        raise click.UsageError("name jobs either by their ids, or by -q, --task, --org or --older-than")
    if job_ids:
        return _cancel_named(job_ids, dsn)
    chosen = JobFilter(
        queue=queue, task=task, org_id=org, older_than=older_than, waiting=not running_only, running=not waiting_only
    )
    _cancel_matching(chosen, yes, dsn)
    return 0


def _cancel_named(job_ids: Sequence[UUID], dsn: str | None) -> int:
    said = {
        CancelAnswer.CANCELLED: "it waited, and will never run",
        CancelAnswer.REQUESTED: "it is claimed by a worker, which was asked to stop it",
        CancelAnswer.TOO_LATE: "it had ended already; `pgworker jobs show` says how",
    }
    with open_database(dsn, "jobs cancel") as connection:
        from pgworker.lifecycle.cancel import cancel_job

        answers = tell_of_each(job_ids, lambda job_id: cancel_job(connection, job_id), said)
    return 1 if CancelAnswer.TOO_LATE in answers else 0


def _cancel_matching(chosen: JobFilter, yes: bool, dsn: str | None) -> None:
    with open_database(dsn, "jobs cancel") as connection:
        from pgworker.inspection.queues import count_matching
        from pgworker.lifecycle.cancel import cancel_jobs

        def question() -> str:
            waiting, running = count_matching(connection, chosen)
            return f"cancel {waiting} waiting and stop {running} running jobs {chosen}"

        confirm(yes, question)
        with Progress("cancelled", "asked to stop") as progress:
            cancel_jobs(connection, chosen, on_progress=lambda done: progress.tell(done.cancelled, done.requested))


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
        "progress": detail.progress,
        "executions": [
            {**dataclasses.asdict(ended), "error": raw(ended.error), "result": raw(ended.result)}
            for ended in detail.executions
        ],
    }
