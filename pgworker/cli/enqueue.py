"""`pgworker enqueue`."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, queue_name, task_name
from pgworker.errors import InvalidJob, InvalidPayload
from pgworker.model.durations import seconds
from pgworker.model.job import DEFAULT_PRIORITY, DEFAULT_QUEUE, JobRequest
from pgworker.model.retry import DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from pgworker.db.connect import Connection

_MAX_ATTEMPTS = 32_767
_SHORTEST_TIMEOUT = 0.001
_MAX_ORG_LENGTH = 256


def delay(text: str) -> float:
    """A number of seconds."""
    try:
        return seconds(float(text), "it")
    except InvalidJob as error:
        raise click.BadParameter(str(error)) from None
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number of seconds") from None


def time_limit(text: str) -> float | None:
    """A number of seconds that is worth starting anything for, or none."""
    if text == "none":
        return None
    limit = delay(text)
    if limit < _SHORTEST_TIMEOUT:
        raise click.BadParameter(f"it must be at least {_SHORTEST_TIMEOUT:g} seconds, or none")
    return limit


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


def org_id(text: str) -> str:
    """The id of an organisation: any text that can be stored."""
    if not 1 <= len(text) <= _MAX_ORG_LENGTH:
        raise click.BadParameter(f"an org id has 1 to {_MAX_ORG_LENGTH} characters")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise click.BadParameter("the org id is not UTF-8")
    return text


@click.command()
@click.argument("task", type=task_name)
@click.argument("payload", metavar="[JSON]", default="{}")
@click.option("-q", "--queue", type=queue_name, default=DEFAULT_QUEUE, show_default=True, metavar="NAME")
@click.option(
    "--priority",
    type=click.IntRange(0, 9),
    default=DEFAULT_PRIORITY,
    show_default=True,
    metavar="0-9",
    help="9 runs first.",
)
@click.option("run_at", "--run-at", type=moment, metavar="TIME", help="Not before this time: 2030-01-31T08:00:00Z.")
@click.option("run_in", "--in", type=delay, metavar="SECONDS", help="Not before so many seconds from now.")
@click.option(
    "--max-attempts",
    type=click.IntRange(1, _MAX_ATTEMPTS),
    default=DEFAULT_MAX_ATTEMPTS,
    show_default=True,
    metavar="N",
)
@click.option(
    "--timeout",
    type=time_limit,
    default=f"{DEFAULT_TIMEOUT:g}",
    show_default=True,
    metavar="SECONDS|none",
    help="How long one execution may take.",
)
@click.option("--org", type=org_id, metavar="ID", help="The organisation that the job belongs to.")
@dsn_option
def enqueue(
    task: str,
    payload: str,
    queue: str,
    priority: int,
    run_at: datetime | None,
    run_in: float | None,
    max_attempts: int,
    timeout: float | None,
    org: str | None,
    dsn: str | None,
) -> None:
    """Enqueue one job and print its id.

    JSON is an object of the task's arguments, {} if left out; - reads it from standard input. The defaults here are
    pgworker's: those that the app gives its task are known to the app alone.
    """
    if run_at is not None and run_in is not None:
        raise click.UsageError("--run-at and --in exclude each other")
    arguments = encoded_arguments(sys.stdin.buffer.read() if payload == "-" else payload)
    with open_database(dsn, "enqueue") as connection:
        from pgworker.lifecycle.enqueue import enqueue_jobs

        request = JobRequest(
            task=task,
            payload=arguments,
            queue=queue,
            priority=priority,
            run_at=run_at if run_in is None else _from_now(connection, run_in),
            max_attempts=max_attempts,
            timeout=timeout,
            org_id=org,
        )
        print(enqueue_jobs(connection, [request])[0])


def encoded_arguments(text: str | bytes) -> str:
    """`text`, a JSON object, as it is stored; InvalidPayload if it is anything else."""
    from pgworker.model.payload import encode_payload

    try:
        # The standard library's parser says where it stumbled, and leaves NaN and U+0000 to the judge of all payloads.
        arguments = json.loads(text)
    except RecursionError:
        raise InvalidPayload("the payload is nested too deep; flatten it") from None
    except ValueError as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise InvalidPayload(
            f"the payload must be a JSON object of named arguments, not {_JSON_NAMES[type(arguments)]}"
        )
    return encode_payload(arguments).decode()


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
