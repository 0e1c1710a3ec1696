"""`pgworker dead-letters`: list, show, requeue, discard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from pgworker.cli.bulk import confirm
from pgworker.cli.database import open_database
from pgworker.cli.options import dsn_option, filter_options, json_option, org_option, whole_uuid
from pgworker.cli.output import Column, duration, hint, print_json, print_table
from pgworker.errors import JobNotFound
from pgworker.model.failure import why_failed
from pgworker.model.selection import of_these

if TYPE_CHECKING:
    from pgworker.db.connect import Connection
    from pgworker.inspection.dead_letters import DeadLetterDetail
    from pgworker.lifecycle.dead_letters import DeadLetterRow

_Command = TypeVar("_Command", bound=Callable[..., Any])
Move = Callable[["Connection", Sequence[UUID]], list[UUID]]

_COLUMNS = (
    Column("ID"),
    Column("TASK", shrinks=True),
    Column("FAILED", right=True),
    Column("DIED", right=True),
    Column("WHY", goes_below=True),
)


@click.group("dead-letters")
def dead_letters() -> None:
    """Jobs that used up their attempts or failed for good."""


def _chosen(command: _Command) -> _Command:
    """ID..., or --all with filters."""
    for option in (
        click.option("--yes", "-y", is_flag=True, help="Don't ask whether --all is meant."),
        org_option,
        filter_options,
        click.option(
            "everything", "--all", is_flag=True, help="All of them, or those that -q, --task and --org leave."
        ),
    ):
        command = option(command)
    return click.argument("job_ids", type=whole_uuid, nargs=-1, metavar="[ID]...")(command)


@dead_letters.command("list")
@filter_options
@org_option
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N")
@json_option
@dsn_option
def list_(queue: str | None, task: str | None, org: str | None, limit: int, as_json: bool, dsn: str | None) -> None:
    """The latest first, and why each was given up."""
    with open_database(dsn, "dead-letters list") as connection:
        from pgworker.inspection.database import read_clock
        from pgworker.lifecycle.dead_letters import list_dead_letters

        found = list_dead_letters(connection, queue=queue, task=task, org_id=org, limit=limit)
        now = read_clock(connection)
    if as_json:
        for letter in found:
            print_json(_as_json(letter))
    elif found:
        print_table(_COLUMNS, [_row(letter, now) for letter in found])
    else:
        click.echo("no such dead letters", err=True)
    if len(found) == limit:
        hint(f"there may be more: --limit {10 * limit}")


@dead_letters.command(short_help="All of one: its job, why it was given up, the stack.")
@click.argument("job_id", type=whole_uuid, metavar="ID")
@json_option
@dsn_option
def show(job_id: UUID, as_json: bool, dsn: str | None) -> None:
    """One dead letter: all of its job, why it was given up, the stack of its last error, and what to do next."""
    with open_database(dsn, "dead-letters show") as connection:
        from pgworker.inspection.dead_letters import find_dead_letter

        letter = find_dead_letter(connection, job_id)
        if letter is None:
            from pgworker.inspection.explain import explain
            from pgworker.inspection.facts import read_facts

            told = explain(read_facts(connection, job_id)).sentence
            raise JobNotFound(f"job {job_id} is no dead letter. {told}")
    if as_json:
        print_json(_as_json(letter))
    else:
        from pgworker.cli.job_page import dead_letter_page

        print("\n".join(dead_letter_page(letter)))


@dead_letters.command()
@_chosen
@dsn_option
def requeue(dsn: str | None, **chosen: Any) -> None:
    """Run them again at once, with their failures counted from 0."""
    choice = _Choice(**chosen)
    choice.be_sure("requeue")
    with open_database(dsn, "dead-letters requeue") as connection:
        from pgworker.lifecycle.dead_letters import requeue_dead_letters

        _move(connection, requeue_dead_letters, "requeued", choice)


@dead_letters.command()
@_chosen
@dsn_option
def discard(dsn: str | None, **chosen: Any) -> None:
    """Give them up for good: their jobs count as cancelled."""
    choice = _Choice(**chosen)
    choice.be_sure("discard")
    with open_database(dsn, "dead-letters discard") as connection:
        from pgworker.lifecycle.dead_letters import discard_dead_letters

        _move(connection, discard_dead_letters, "discarded", choice)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What `_chosen` reads."""

    job_ids: tuple[UUID, ...]
    everything: bool
    queue: str | None
    task: str | None
    org: str | None
    yes: bool

    def be_sure(self, verb: str) -> None:
        """Return if it is said which are meant, and all of them only if that is meant."""
        if not self.job_ids and not self.everything:
            raise click.UsageError("name the ids of dead letters, or give --all")
        if self.job_ids and (self.everything or self.queue or self.task or self.org):
            raise click.UsageError("give either ids, or --all with -q, --task and --org")
        if self.everything:
            confirm(self.yes, lambda: f"{verb} all dead letters{of_these(self.queue, self.task, self.org)}")


def _move(connection: Connection, move: Move, done: str, choice: _Choice) -> None:
    if not choice.job_ids:
        print(f"{done} {sum(move_all(connection, move, choice.queue, choice.task, choice.org))}")
        return
    moved = set(move(connection, choice.job_ids))
    print(f"{done} {len(moved)}")
    missing = [str(job_id) for job_id in dict.fromkeys(choice.job_ids) if job_id not in moved]
    if missing:
        raise JobNotFound(f"not among the dead letters: {', '.join(missing)}")


def move_all(
    connection: Connection, move: Move, queue: str | None, task: str | None, org_id: str | None
) -> Iterator[int]:
    """From the latest back in time, so that what is requeued and dies again meanwhile doesn't come round for ever.

    Yields how many each batch had.
    """
    from pgworker.inspection.dead_letters import find_dead_letters

    until: datetime | None = None
    while batch := find_dead_letters(connection, queue=queue, task=task, org_id=org_id, until=until):
        yield len(move(connection, [job_id for job_id, _ in batch]))
        until = batch[-1][1]


def _row(letter: DeadLetterRow, now: datetime) -> list[str]:
    died = duration((now - letter.died_at).total_seconds())
    why = why_failed(letter.outcome, letter.error, letter.cause)
    return [str(letter.job_id), letter.task, f"{letter.failures}/{letter.max_attempts}", died, why]


def _as_json(letter: DeadLetterRow | DeadLetterDetail) -> dict[str, Any]:
    import msgspec

    texts = {
        name: text for name in ("payload", "headers", "error") if (text := getattr(letter, name, None)) is not None
    }
    return dataclasses.asdict(letter) | {name: msgspec.Raw(text.encode()) for name, text in texts.items()}
