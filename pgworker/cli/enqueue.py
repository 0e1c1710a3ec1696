"""`pgworker enqueue`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, queue_name, task_name, time_span
from pgworker.cli.output import hint, is_watched
from pgworker.errors import InvalidPayload
from pgworker.model.durations import duration, seconds
from pgworker.model.job import DEFAULT_PRIORITY, DEFAULT_QUEUE, JobRequest
from pgworker.model.retry import DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from pgworker.db.connect import Connection

_MAX_INPUT = 16 << 20
"""More than any payload that can be stored, blanks and line ends of its JSON included."""


def time_limit(text: str) -> float | None:
    """As `time_span`, or none."""
    return None if text == "none" else time_span(text)


def moment(text: str) -> datetime:
    """A time with its offset, RFC 3339."""
    import msgspec

    hint = "give it like 2030-01-31T08:00:00Z or 2030-01-31T09:00:00+01:00"
    try:
        parsed: datetime = msgspec.convert(text, datetime)
    except (msgspec.ValidationError, UnicodeError):
        raise click.BadParameter(f"{text!r} is no time; {hint}") from None
    if parsed.tzinfo is None:
        raise click.BadParameter(f"{text!r} lacks its offset to UTC; {hint}")
    return parsed


@click.command()
@click.argument("task", type=task_name)
@click.argument("payload", metavar="[JSON]", default="{}")
@click.option("-q", "--queue", type=queue_name, default=DEFAULT_QUEUE, show_default=True, metavar="NAME")
@click.option(
    "--priority",
    type=int,
    default=DEFAULT_PRIORITY,
    show_default=True,
    metavar="0-9",
    help="9 runs first.",
)
@click.option("run_at", "--run-at", type=moment, metavar="TIME", help="Not before this time: 2030-01-31T08:00:00Z.")
@click.option("run_in", "--in", type=time_span, metavar="TIME", help="Not before so long from now: 90, 30s, 2h, 7d.")
@click.option(
    "--max-attempts",
    type=int,
    default=DEFAULT_MAX_ATTEMPTS,
    show_default=True,
    metavar="N",
)
@click.option(
    "--timeout",
    type=time_limit,
    default=duration(DEFAULT_TIMEOUT),
    show_default=True,
    metavar="TIME|none",
    help="How long one execution may take until it is asked to stop.",
)
@click.option("org_id", "--org", metavar="ID", help="The organisation that the job belongs to.")
@dsn_option
def enqueue(
    task: str,
    payload: str,
    run_at: datetime | None,
    run_in: float | None,
    dsn: str | None,
    **options: Any,
) -> None:
    """Enqueue one job and print its id.

    JSON is an object of the task's arguments, {} if left out; - reads it from standard input. The defaults here are
    pgworker's: those that the app gives its task are known to the app alone.
    """
    if run_at is not None and run_in is not None:
        raise click.UsageError("--run-at and --in exclude each other")
    wait = None if run_in is None else seconds(run_in, "--in")
    arguments = encoded_arguments(_standard_input() if payload == "-" else payload)
    from pgworker.app.options import job_options

    request = JobRequest(task, arguments, **job_options({**options, "run_at": run_at}))
    with open_database(dsn, "enqueue") as connection:
        from pgworker.lifecycle.enqueue import enqueue_jobs

        due = request if wait is None else request._replace(run_at=_from_now(connection, wait))
        (job_id,) = enqueue_jobs(connection, [due])
        try:
            print(job_id, flush=True)
        except OSError:
            print(f"The job is stored all the same, as {job_id}.", file=sys.stderr)
            raise
        if is_watched():
            _warn(connection, job_id)


def _warn(connection: Connection, job_id: UUID) -> None:
    """A name that nobody knows is stored like others, as a deploy may bring it: a person is told of it at once.

    Who may only enqueue can't see it.
    """
    from psycopg.errors import InsufficientPrivilege

    from pgworker.inspection.explain import obstacle
    from pgworker.inspection.facts import read_facts

    with suppress(InsufficientPrivilege):
        facts = read_facts(connection, job_id)
        if facts.detail.job.status in ("pending", "scheduled") and (found := obstacle(facts)) is not None:
            hint(found.sentence)
            if found.command is not None:
                hint(f"Try: {found.command}")


def encoded_arguments(text: str | bytes) -> str:
    """`text`, a JSON object, as it is stored; InvalidPayload if it is anything else."""
    from pgworker.model.payload import encode_payload

    try:
        # The standard library's parser says where it stumbled, and leaves NaN and U+0000 to the judge of all payloads.
        arguments = json.loads(text)
    except RecursionError:
        raise InvalidPayload("the payload is nested too deep; flatten it") from None
    except ValueError as error:
        raise InvalidPayload(
            f'the payload is not JSON: {error}; write an object of named arguments, such as \'{{"name": "Ada"}}\''
        ) from None
    if not isinstance(arguments, dict):
        raise InvalidPayload(
            f"the payload must be a JSON object of named arguments, not {_JSON_NAMES[type(arguments)]}"
        )
    return encode_payload(arguments).decode()


def _standard_input() -> bytes:
    text = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(text) > _MAX_INPUT:
        raise InvalidPayload(f"the payload has more than {_MAX_INPUT} bytes; store it elsewhere and pass a reference")
    return text


def _from_now(connection: Connection, wait: float) -> datetime:
    from pgworker.inspection.database import read_clock

    return read_clock(connection) + timedelta(seconds=wait)


_JSON_NAMES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
