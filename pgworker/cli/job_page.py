"""All that is known about one job, or one that was given up, as lines for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgworker.cli.output import duration, printable
from pgworker.inspection.explain import worker_name
from pgworker.model.display import ago, utc
from pgworker.model.state import WAITING

if TYPE_CHECKING:
    from pgworker.inspection.dead_letters import DeadLetterDetail
    from pgworker.inspection.jobs import ClaimRecord, ExecutionRecord, JobDetail, JobRecord
    from pgworker.model.progress import Progress

_LONGEST = 2000
"""Characters of a payload, result or message; `--json` has all of it."""

_CALLS_HANDLER = re.compile(
    r'/pgworker/app/(?:task|scope)\.py", line \d+ in (?:<lambda>|invoke|invoke_async|run_in_job)$'
)
"""In a dump of stacks, the most recent call first: what is below it leads to the handler, too."""

_LEADS_TO_HANDLER = re.compile(
    r"/pgworker/(?:worker/(?:runner|foreground|execution)|app/(?:task|scope|middleware))\.py"
    r'", line \d+, in (?:_run|run_async|_call|call(?:_async)?|invoke(?:_async)?|run_in_job|guarded|<lambda>|around'
    r"|call_next)$"
)
"""In a traceback, which has a comma before `in`, the most recent call last."""

_BEHIND_THE_FIRST = re.compile(r'", line \d+ in |/asyncio/base_events\.py", line \d+, in run_until_complete$')
"""What is left out behind one of these: the rest of a dump, and the loop of `jobs run`."""


def job_page(detail: JobDetail, in_short: str) -> Iterator[str]:
    """What matters most, the job itself, its executions, the latest first, then the stack of the latest error."""
    yield f"{'in short':<10}  {printable(in_short)}"
    for name, value in _facts(detail):
        yield f"{name:<10}  {printable(clip(value))}"
    for ended in detail.executions:
        yield ""
        yield from _execution(ended, detail.job.seen_at)
    if detail.executions and detail.executions[-1].execution > 1:
        yield ""
        yield f"({detail.executions[-1].execution - 1} earlier executions are not shown)"
    yield from _stack(detail.executions)


def dead_letter_page(letter: DeadLetterDetail) -> Iterator[str]:
    """The job, why it was given up, the stack of its last error, and the commands that decide what becomes of it."""
    for name, value in _dead_facts(letter):
        yield f"{name:<10}  {printable(clip(value))}"
    error = _texts(letter.error)
    if stack := error.get("traceback") or error.get("stack"):
        yield from ("", f"stack of execution {letter.execution}:")
        yield from (f"    {line}" for line in stack_lines(stack))
    yield from ("", f"run it again:          pgworker dead-letters requeue {letter.job_id}")
    yield f"give it up for good:   pgworker dead-letters discard {letter.job_id}"
    yield f"its whole history:     pgworker jobs show {letter.job_id}"


def _dead_facts(letter: DeadLetterDetail) -> Iterator[tuple[str, str]]:
    now = letter.seen_at
    yield "job", str(letter.job_id)
    yield (
        "died",
        f"{utc(letter.died_at)} ({ago(letter.died_at, now)}), its execution {letter.execution} {letter.outcome}",
    )
    error = _texts(letter.error)
    if said := ": ".join(filter(None, (error.get("type"), error.get("message")))):
        yield "error", said
    if letter.cause is not None and letter.cause != error.get("message"):
        yield "cause", letter.cause
    yield from _stored(letter, letter.failures, now)
    if letter.hook is not None:
        yield "hook", f"a job of {letter.hook} is enqueued for each dead letter of this task"


def _facts(detail: JobDetail) -> Iterator[tuple[str, str]]:
    job = detail.job
    yield "job", str(job.id)
    yield "status", job.status + _when(detail)
    if detail.claim is not None:
        yield "claimed", _claim(detail.claim, job.seen_at)
    if detail.progress is not None:
        yield from _progress(detail.progress, job.seen_at)
    yield from _stored(job, detail.failures, job.seen_at)


def _stored(job: JobRecord | DeadLetterDetail, failures: int, now: datetime) -> Iterator[tuple[str, str]]:
    """What was enqueued, and how often it has failed."""
    yield "task", job.task
    yield "queue", f"{job.queue}, priority {job.priority}"
    if job.org_id is not None:
        yield "org", job.org_id
    yield "enqueued", f"{utc(job.created_at)} ({ago(job.created_at, now)})"
    yield "failures", f"{failures} of {job.max_attempts} attempts"
    yield "timeout", "none" if job.timeout is None else duration(job.timeout)
    yield "payload", job.payload
    if job.headers is not None:
        yield "headers", job.headers


def _when(detail: JobDetail) -> str:
    job = detail.job
    if job.status not in WAITING:
        return ""
    ahead = (job.run_at - job.seen_at).total_seconds()
    if ahead <= 0:
        return f", due since {duration(-ahead)}"
    return f", {'runs again' if job.status == 'failed' else 'due'} in {duration(ahead)}, at {utc(job.run_at)}"


def _claim(claim: ClaimRecord, now: datetime) -> str:
    parts = [f"{ago(claim.claimed_at, now)} by {worker_name(claim)}, as execution {claim.execution}"]
    if claim.claimed > 1:
        parts.append(f"number {claim.position} of the {claim.claimed} it claimed together")
    if claim.cancel_requested:
        parts.append("asked to stop")
    if claim.ended_how is not None:
        parts.append(f"that worker has ended ({claim.ended_how}), and the job is about to be reclaimed")
    elif claim.expires_at < now:
        parts.append(f"its lease expired {ago(claim.expires_at, now)}, and the job is about to be reclaimed")
    return "; ".join(parts)


def _progress(progress: Progress, now: datetime) -> Iterator[tuple[str, str]]:
    said = f"{progress.fraction:.0%}{': ' if progress.message else ''}{progress.message}"
    yield "progress", f"{said} (execution {progress.execution}, {ago(progress.updated_at, now)})"
    if progress.checkpoint is not None:
        yield "checkpoint", json.dumps(progress.checkpoint, ensure_ascii=False)


def _execution(ended: ExecutionRecord, now: datetime) -> Iterator[str]:
    ran = (
        "" if ended.started_at is None else f" after {duration((ended.finished_at - ended.started_at).total_seconds())}"
    )
    where = "" if ended.worker_id is None else f", {worker_name(ended)}"
    line = f"execution {ended.execution}: {ended.outcome}{ran}, {ago(ended.finished_at, now)}{where}"
    yield printable(line)
    error = _error(ended)
    if error:
        yield f"    {printable(clip(': '.join(filter(None, (error.get('type'), error.get('message'))))))}"
    if ended.cause is not None and ended.cause != error.get("message"):
        yield f"    {printable(clip(ended.cause))}"
    if ended.result is not None:
        yield f"    result {printable(clip(ended.result))}"


def _stack(executions: list[ExecutionRecord]) -> Iterator[str]:
    for ended in executions:
        error = _error(ended)
        if stack := error.get("traceback") or error.get("stack"):
            yield ""
            yield f"stack of execution {ended.execution}:"
            yield from (f"    {line}" for line in stack_lines(stack))
            return


def stack_lines(stack: str, all_in: str = "--json") -> Iterator[str]:
    """Without the frames that led to the handler; `all_in` is what has them."""
    shown: list[str] = []
    left_out = 0
    for line in stack.rstrip().split("\n"):
        if line.startswith("  File "):
            is_ours = _CALLS_HANDLER.search(line) or _LEADS_TO_HANDLER.search(line)
            if is_ours or (left_out and _BEHIND_THE_FIRST.search(line)):
                if left_out:
                    shown.pop()
                left_out += 1
                shown.append(f"  … {left_out} frame{'s' if left_out > 1 else ''} of pgworker ({all_in} has them)")
                continue
        elif left_out and line.startswith("    "):  # the source of a frame that is left out
            continue
        left_out = 0
        shown.append(line)
    yield from (printable(line, lines=True) for line in shown)


def _error(ended: ExecutionRecord) -> dict[str, str]:
    return _texts(ended.error)


def _texts(stored: str | None) -> dict[str, str]:
    """The texts of a stored error; whoever else writes to the table may have put anything there."""
    error: Any = None if stored is None else json.loads(stored)
    if not isinstance(error, dict):
        return {} if error is None else {"message": json.dumps(error)}
    return {name: value for name, value in error.items() if isinstance(value, str)}


def clip(text: str) -> str:
    """The text, or as much of it as a page has room for and how much more there is."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text) - _LONGEST} characters more: --json)"
