"""`pgworker jobs retry`: what waits for its time, or was given up, runs now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import click

from pgworker.cli.bulk import Progress, confirm, tell_of_each
from pgworker.cli.database import open_database
from pgworker.cli.dead_letters import move_all
from pgworker.cli.options import dsn_option, filter_options, org_option, whole_uuid
from pgworker.model.selection import of_these
from pgworker.model.state import RetryAnswer, Status

_AGAIN: Final = "enqueue another one: `pgworker jobs show` has its task and payload for `pgworker enqueue`"

_SAID: Final = {
    RetryAnswer.DUE: "it waited for a later time, and runs as soon as a worker is free",
    RetryAnswer.REQUEUED: "it was a dead letter, and runs again with its failures counted from 0",
    RetryAnswer.WAITING: "it was due already; `pgworker jobs explain` says what it waits for",
    RetryAnswer.RUNNING: "a worker has it; `pgworker jobs explain` says which",
    RetryAnswer.SUCCEEDED: f"refused, as what it did must not be done twice; {_AGAIN}",
    RetryAnswer.CANCELLED: f"refused, as whoever waited for it was told so; {_AGAIN}",
    RetryAnswer.LOST: "it is nowhere; please report this as a bug of pgworker",
}
_WAITS_OR_DEAD: Final = (Status.FAILED, Status.SCHEDULED, Status.DEAD_LETTER)


@click.command(short_help="Run jobs now that wait for their time or their retry.")
@click.argument("job_ids", type=whole_uuid, nargs=-1, metavar="[ID]...")
@click.option("everything", "--all", is_flag=True, help="All of them, or those that the other options leave.")
@filter_options
@org_option
@click.option(
    "statuses",
    "--status",
    type=click.Choice([status.value for status in _WAITS_OR_DEAD], case_sensitive=False),
    multiple=True,
    help="With --all: only these; may be repeated.  [default: failed]",
)
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@dsn_option
def retry(
    job_ids: tuple[UUID, ...],
    everything: bool,
    queue: str | None,
    task: str | None,
    org: str | None,
    statuses: tuple[str, ...],
    yes: bool,
    dsn: str | None,
) -> int:
    """Run jobs now: those that are named by their ids, or with --all those that wait for their retry.

    A job that is scheduled or waits for its retry (failed) is due now, and a dead letter is requeued. What is due or
    runs stays as it is. What has succeeded or was cancelled is refused, and the exit code is 1.
    """
    if bool(job_ids) == everything:
        raise click.UsageError("name jobs by their ids, or give --all")
    if job_ids and (queue or task or org or statuses):
        raise click.UsageError("give either ids, or --all with -q, --task, --org and --status")
    if job_ids:
        return _retry_named(job_ids, dsn)
    _retry_matching([Status(status) for status in statuses] or [Status.FAILED], queue, task, org, yes, dsn)
    return 0


def _retry_named(job_ids: Sequence[UUID], dsn: str | None) -> int:
    with open_database(dsn, "jobs retry") as connection:
        from pgworker.lifecycle.retry import retry_job

        answers = tell_of_each(job_ids, lambda job_id: retry_job(connection, job_id), _SAID)
    return 1 if any(answer.is_refusal for answer in answers) else 0


def _retry_matching(
    statuses: Sequence[Status], queue: str | None, task: str | None, org: str | None, yes: bool, dsn: str | None
) -> None:
    meant = " and ".join(status.value for status in dict.fromkeys(statuses))
    with open_database(dsn, "jobs retry") as connection:
        from pgworker.lifecycle.dead_letters import requeue_dead_letters
        from pgworker.lifecycle.hasten import hasten_matching

        confirm(yes, lambda: f"run all {meant} jobs{of_these(queue, task, org)} now")
        due = requeued = 0
        with Progress("due now", "requeued") as progress:
            if Status.FAILED in statuses or Status.SCHEDULED in statuses:
                for jobs in hasten_matching(
                    connection,
                    queue=queue,
                    task=task,
                    org_id=org,
                    retries=Status.FAILED in statuses,
                    scheduled=Status.SCHEDULED in statuses,
                ):
                    due += jobs
                    progress.tell(due, requeued)
            if Status.DEAD_LETTER in statuses:
                for jobs in move_all(connection, requeue_dead_letters, queue, task, org):
                    requeued += jobs
                    progress.tell(due, requeued)
