"""The command `pgworker`: which commands there are, and what their errors look like and end with.

Nothing heavy is imported before a command is chosen, so that `--help` and completion are quick.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

from pgworker.cli.options import config_option
from pgworker.cli.output import printable
from pgworker.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USAGE, DatabaseUnavailable, PgworkerError

EXIT_NOT_WRITTEN = 1

_COMMANDS = {
    "start": "Run a pool of workers on this host.",
    "demo": "See a pool at work on a private PostgreSQL.",
    "migrate": "Bring the database to this package's schema.",
    "enqueue": "Enqueue one job and print its id.",
    "jobs": "List, show, explain, retry, cancel and run jobs.",
    "queues": "List, pause, resume and purge queues.",
    "dead-letters": "List, show, requeue and discard jobs that were given up.",
    "workers": "Who is alive on which host, and what each does.",
    "prune": "Drop the history of days that have expired.",
    "bench": "Measure pgworker on this machine and server.",
    "config": "Show every setting and where it comes from.",
    "status": "Queues, workers and dead letters at a glance.",
    "top": "See all workers, queues and failures of a database, live.",
    "completion": "Print what makes your shell complete commands.",
}
"""The first line of each one's help; the command itself is in the module of its name."""


class LazyGroup(click.Group):
    """Imports the module of a command when the command is used, and not to list it."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"pgworker.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = get_close_matches(name, _COMMANDS, cutoff=0.7)
            advice = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(_COMMANDS))}"
            raise click.UsageError(f"there is no command {name!r}; {advice}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """By the names above: click would import the module of each."""
        found = [CompletionItem(name, help=told) for name, told in _COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print(f"pgworker {_version()}")
        ctx.exit()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pgworker")
    except PackageNotFoundError:
        return "(not installed)"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@config_option
def cli() -> None:
    """A job runner for Python on PostgreSQL.

    The database: --dsn of each command, else PGWORKER_DSN, else DATABASE_URL, else what pgworker.toml says.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` without its first word if None) and return its exit code."""
    _prepare_output()
    try:
        result: Any = cli.main(arguments, prog_name="pgworker", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return _usage(error)
    except click.Abort:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: a bug, said as such
        return tell_failure(error)
    return result if isinstance(result, int) else 0


def tell_failure(error: Exception) -> int:
    """Say on stderr what has ended a command; returns its exit code."""
    if isinstance(error, DatabaseUnavailable) and _follows_interrupt(error):
        print(file=sys.stderr)  # as click does: behind the ^C of the terminal
        return EXIT_INTERRUPTED
    if isinstance(error, PgworkerError):
        return _explained(error)
    return _unwritten(error) if isinstance(error, OSError) else _bug(error)


def _follows_interrupt(error: BaseException | None) -> bool:
    """Whether it came of Ctrl-C: a driver that is interrupted may fail on its way out."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _prepare_output() -> None:
    """A terminal or pipe that isn't UTF-8 gets escapes for what it can't show, and a closed output is none."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  for the life of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _usage(error: click.ClickException) -> int:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()  # the help itself
        return EXIT_USAGE
    _say(error.format_message())
    context = getattr(error, "ctx", None)
    if context is not None:
        print(f"Try `{context.command_path} --help`.", file=sys.stderr)
    return EXIT_USAGE


def _explained(error: PgworkerError) -> int:
    _say(str(error))
    if error.exit_code == EXIT_BUG:
        _print_traceback(error)
    return error.exit_code


def _bug(error: Exception) -> int:
    _say(f"this is a bug of pgworker, please report it: {type(error).__name__}: {error}")
    _print_traceback(error)
    return EXIT_BUG


def _unwritten(error: OSError) -> int:
    """What was printed can't be written: the reader has gone, which is no news to anybody, or the disk is full."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return _bug(error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not try again
    if error.errno != errno.EPIPE:
        _say(f"can't write: {error.strerror}")
    return EXIT_NOT_WRITTEN


def _say(sentence: str) -> None:
    print(f"pgworker: {printable(sentence, lines=True)}", file=sys.stderr)


def _print_traceback(error: BaseException) -> None:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    print(printable(text.rstrip(), lines=True), file=sys.stderr)
