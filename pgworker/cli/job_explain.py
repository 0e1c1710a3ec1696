"""`pgworker jobs explain`: why a job doesn't run, or where it runs, or how it ended, and what to do."""

from __future__ import annotations

from uuid import UUID

import click

from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, json_option, whole_uuid
from pgworker.cli.output import print_json, printable


@click.command(short_help="Why a job doesn't run, or where it runs, or how it ended.")
@click.argument("job_id", type=whole_uuid, metavar="ID")
@json_option
@dsn_option
def explain(job_id: UUID, as_json: bool, dsn: str | None) -> None:
    """Why a job doesn't run, or where it runs, or how it ended, in a sentence or two; and the command that helps."""
    with open_database(dsn, "jobs explain") as connection:
        from pgworker.inspection.explain import explain as explained
        from pgworker.inspection.facts import read_facts

        facts = read_facts(connection, job_id)
    found = explained(facts)
    if as_json:
        print_json(
            {
                "id": job_id,
                "status": facts.detail.job.status,
                "reason": found.reason.value,
                "explanation": found.sentence,
                "command": found.command,
            }
        )
        return
    print(printable(found.sentence))
    if found.command is not None:
        print(f"Try: {printable(found.command)}")
