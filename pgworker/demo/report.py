"""The summary that is printed at the end: what was done, what went wrong on the way, and whether it all came right."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from pgworker.demo import jobs
from pgworker.demo.checks import Check, Story, total
from pgworker.demo.evidence import Execution
from pgworker.model.state import Outcome

_WIDTH = 79

_START = ("start", "--app", "pgworker.demo.jobs:app")
_ENQUEUE = ("enqueue", "demo.examine", """'{"path": "/etc/hosts"}'""")

_TALES = (
    (jobs.stumble.name, "failed, and succeeded when they ran again"),
    (jobs.record.name, "lost its worker to kill -9 before its commit: ran again, is written once"),
    (jobs.crash.name, "crashed its worker with SIGSEGV, twice: a dead letter"),
    (jobs.hang.name, f"hung: was ended after {jobs.HANG_TIMEOUT:g} s, its stack is kept: a dead letter"),
    (jobs.obey.name, "was cancelled while it ran"),
    (jobs.refuse.name, "raised Discard, not to be run again: a dead letter"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """All that there is to say about one run of the demo.

    `seconds` are the pool's; no `kept`: nothing is left of it; `program` is how to call pgworker here.
    """

    story: Story
    checks: Sequence[Check]
    workers: int
    seconds: float
    kept: Path | None
    log: Path
    program: str

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.holds for check in self.checks)


def _style(text: str, **style: Any) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def _say(text: str, **style: Any) -> None:
    click.echo(_style(text, **style))


def print_report(result: Result) -> None:
    """The whole summary, to stdout, in 80 columns."""
    story, deaths = result.story, list(_deaths(result.story))
    who = f"{result.workers} worker{'s' if result.workers > 1 else ''}, with {len(deaths)} deaths on the way"
    speed = f"{len(story.jobs) / result.seconds:,.0f} a second"
    _say(f"{len(story.jobs):,} jobs in {result.seconds:.1f} s, {speed}, by {who}", bold=True)
    click.echo(f"  {total(story.facts.values())}")
    _print_tales(story)
    _print_deaths(deaths)
    _print_checks(result)
    _print_next(result)


def _print_tales(story: Story) -> None:
    click.echo("\nWhat was made to go wrong")
    for task, tale in _TALES:
        planned = [
            job_id for job_id, job in story.jobs.items() if job.task == task and job.outcomes != (Outcome.SUCCEEDED,)
        ]
        done = sum(map(story.went_as_planned, planned))
        click.echo(f"  {done if done == len(planned) else f'{done} of {len(planned)}':>3}  {tale}")


def _print_deaths(deaths: Sequence[tuple[str, Execution]]) -> None:
    click.echo("\nDeaths of workers, as recorded")
    for task, run in deaths:
        line = f"  {task}, {run.outcome}: {run.cause}"
        click.echo(textwrap.fill(line, _WIDTH, subsequent_indent=" " * 4))


def _deaths(story: Story) -> Iterator[tuple[str, Execution]]:
    for job_id, job in story.jobs.items():
        for run in story.evidence.executions.get(job_id, []):
            if run.outcome in (Outcome.CRASHED, Outcome.TIMED_OUT):
                yield job.task, run


def _print_checks(result: Result) -> None:
    click.echo("\nChecked in the database, and against a plain loop over the same files")
    for check in result.checks:
        if check.holds:
            click.echo(f"  {_style('ok', fg='green')}  {check.promise}")
        else:
            hint = f" ({check.hint})" if check.hint else ""
            line = f"{check.promise}: expected {check.expected}; found {check.found}{hint}"
            click.echo(f"  {_style('NO', fg='red', bold=True)}  {line}")
    click.echo()
    if result.holds:
        _say("Nothing lost, nothing twice, every death explained.", fg="green", bold=True)
    else:
        failed = sum(not check.holds for check in result.checks)
        _say(f"{failed} of {len(result.checks)} checks failed.", fg="red", bold=True)
        click.echo(f"The pool's log: {result.log}")


def _print_next(result: Result) -> None:
    if result.kept is None:
        heading, commands = "Try next (or the same with --keep, to look into its database)", _elsewhere()
    else:
        heading, commands = f"All of it is in {result.kept}; try next", _in_kept(result, result.kept)
    click.echo(f"\n{heading}")
    for what, *words in commands:
        click.echo(f"  # {what}")
        click.echo(f"  {_command([result.program, *words])}")


def _command(words: Sequence[str]) -> str:
    """As typed, over several lines if need be."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > _WIDTH - 2 and lines[-1].strip():
            lines[-1] += " \\"
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def _elsewhere() -> list[tuple[str, ...]]:
    return [
        ("a pool of these tasks, on a private PostgreSQL in ./.pgworker, until Ctrl-C", *_START, "--embedded"),
        ("from another terminal: a job for it", *_ENQUEUE, "--dsn embedded:.pgworker"),
        ("and all that goes on there, live; q ends it", "top", "--dsn embedded:.pgworker"),
    ]


def _in_kept(result: Result, directory: Path) -> list[tuple[str, ...]]:
    hung = next(job_id for job_id, job in result.story.jobs.items() if job.task == jobs.hang.name)
    quoted = shlex.quote(str(directory))
    dsn = f"--dsn embedded:{quoted}"
    return [
        ("its PostgreSQL and a pool again, until Ctrl-C", *_START, f"--embedded={quoted}"),
        ("from another terminal: where the job that hung was stuck", "jobs", "show", str(hung), dsn),
        ("all workers, queues and failures, live; q ends it", "top", dsn),
    ]


def as_json(result: Result) -> dict[str, Any]:
    """The same for scripts; `kept` is where the database stays, if it does."""
    story = result.story
    return {
        "holds": result.holds,
        "jobs": len(story.jobs),
        "workers": result.workers,
        "seconds": result.seconds,
        "jobs_per_second": len(story.jobs) / result.seconds,
        "files": asdict(total(story.facts.values())),
        "deaths": [{"task": task, "outcome": run.outcome, "cause": run.cause} for task, run in _deaths(story)],
        "checks": [{**asdict(check), "holds": check.holds} for check in result.checks],
        "kept": None if result.kept is None else str(result.kept),
    }
