"""`pgworker jobs run`: one job in the foreground, where print and a debugger work."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import click

from pgworker.cli.database import default_workers, no_app, open_database, require_dsn, sources
from pgworker.cli.options import dsn_option, whole_uuid
from pgworker.cli.output import duration, printable
from pgworker.config.layers import configure
from pgworker.errors import EXIT_INTERRUPTED, ConfigurationError
from pgworker.model.state import WAITING

if TYPE_CHECKING:
    from pgworker.app.app import App
    from pgworker.app.queue.leases import ClaimedJob
    from pgworker.db.connect import Connection
    from pgworker.inspection.facts import Facts

EXIT_FAILED = 1

_REFUSED = "This job can't be run here. "


@click.command(short_help="Run one job here and now, with this terminal.")
@click.argument("job_id", type=whole_uuid, metavar="ID")
@click.option(
    "--app", "app_path", metavar="MODULE:APP", help="Where the App is, such as shop.jobs:app.  [PGWORKER_APP]"
)
@click.option("--force", is_flag=True, help="Though its queue is paused.")
@dsn_option
def run(job_id: UUID, app_path: str | None, force: bool, dsn: str | None) -> int:
    """Run one job here and now, in the foreground: its prints are seen, and breakpoint() has this terminal.

    It is a real execution: claimed, so that no worker has it too, and recorded, with its failures and retries. A
    scheduled job needn't be due. Nobody ends it at its deadline. Ctrl-C, or q in pdb, hands it back uncharged.

    Exit codes: 0 it has succeeded, 1 it has not, 130 it was handed back, 64 it can't be run.
    """
    configuration = configure(sources({"app": app_path, "dsn": dsn}), workers=default_workers())
    if configuration.app is None:
        raise no_app()
    from pgworker.app.registry import load_app
    from pgworker.observe import logs

    logs.configure(level=configuration.settings.log_level)
    app = load_app(configuration.app)
    app.use_dsn(require_dsn(dsn))
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal is a Ctrl-C too
        signal.signal(number, signal.default_int_handler)
    with open_database(dsn, "jobs run") as connection:
        queue = _check(connection, app, job_id, force=force)
    try:
        return _run(app, queue, job_id, force=force, dsn=dsn)
    finally:
        app.close()


def _run(app: App, queue: str, job_id: UUID, *, force: bool, dsn: str | None) -> int:
    from pgworker.worker.single import Interrupted, NotClaimed, run_job

    code, error = EXIT_FAILED, None
    try:
        error = run_job(app, queue, job_id, even_paused=force, on_start=_announce)
    except NotClaimed:
        with open_database(dsn, "jobs run") as connection:
            _check(connection, app, job_id, force=force)
        raise click.ClickException(f"{_REFUSED}Somebody took it a moment ago; look with jobs explain.") from None
    except Interrupted:
        code = EXIT_INTERRUPTED
    with open_database(dsn, "jobs run", accepts_newer=True) as connection:
        from pgworker.inspection.facts import read_facts

        facts = read_facts(connection, job_id)
    if error is not None:
        _print_stack(error)
    print(_ending(facts, handed_back=code == EXIT_INTERRUPTED))
    return 0 if facts.detail.job.status == "succeeded" else code


def _check(connection: Connection, app: App, job_id: UUID, *, force: bool) -> str:
    """The queue of the job. ClickException, a sentence, for one that can't be run here; JobNotFound."""
    from difflib import get_close_matches

    from pgworker.inspection.explain import explain
    from pgworker.inspection.facts import read_facts

    facts = read_facts(connection, job_id)
    job, found = facts.detail.job, explain(facts)
    if facts.detail.claim is not None or job.status not in WAITING:
        again = f" Try: pgworker jobs retry {job_id}" if job.status == "dead_letter" else ""
        raise click.ClickException(f"{_REFUSED}{found.sentence}{again}")
    if job.task not in app.tasks:
        close = get_close_matches(job.task, app.tasks, n=1)
        hint = f"; did you mean {close[0]}?" if close else ": is it the right app, is its module imported?"
        raise ConfigurationError(f"the app has no task {job.task}{hint}")
    if facts.paused_for is not None and not force:
        raise click.ClickException(
            f"{_REFUSED}Its queue, {job.queue}, has been paused for {duration(facts.paused_for)}; --force runs it."
        )
    return job.queue


def _announce(claimed: ClaimedJob) -> None:
    row = claimed.row
    limit = (
        "it has no deadline"
        if row.timeout_ms is None
        else (f"nobody ends it at its deadline, in {duration(row.timeout_ms / 1000)}")
    )
    _tell(f"running {row.task}, job {row.job_id}, execution {row.execution}; {limit}; Ctrl-C hands it back")


def _print_stack(error: BaseException) -> None:
    from pgworker.cli.job_page import stack_lines
    from pgworker.errors import JobControl
    from pgworker.model.payload import describe_error

    if not isinstance(error, JobControl):
        stack = describe_error(error)["traceback"]
        print("\n".join(stack_lines(stack, "pgworker jobs show --json")), file=sys.stderr)


def _ending(facts: Facts, *, handed_back: bool) -> str:
    from pgworker.cli.job_page import clip
    from pgworker.inspection.explain import explain

    detail = facts.detail
    last = detail.executions[0] if detail.executions else None
    if handed_back and last is not None and last.outcome == "released":
        return "handed back: it waits as before, and nothing was charged"
    text = explain(facts).sentence
    if last is not None and last.outcome == "succeeded" and last.result is not None:
        text += f" It returned {clip(last.result)}"
    return printable(text)


def _tell(sentence: str) -> None:
    print(f"pgworker: {printable(sentence)}", file=sys.stderr, flush=True)
