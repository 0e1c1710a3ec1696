"""What the demo promises, held against what the database says and what the plain loop found. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from pgworker.demo import jobs
from pgworker.demo.evidence import Evidence
from pgworker.demo.files import FileFacts
from pgworker.demo.plan import Plan, PlannedJob
from pgworker.model.state import Outcome

_UNSPOKEN = (Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.LOST, Outcome.RELEASED)
"""How an execution ends that could not say so itself."""

_EXAMPLES = 3
"""Jobs that a check which fails names."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What was found in all files together."""

    files: int
    size: int
    lines: int
    definitions: int

    def __str__(self) -> str:
        return f"{self.files:,} files, {self.size:,} bytes, {self.lines:,} lines, {self.definitions:,} definitions"


@dataclass(frozen=True, slots=True)
class Story:
    """What was planned, what was done to it from outside, and what came of it."""

    plan: Plan
    jobs: Mapping[UUID, PlannedJob]
    facts: Mapping[str, FileFacts]
    """What the plain loop found, by path."""
    killed_pid: int | None
    """The worker that got SIGKILL while it ran the victim."""
    exit_code: int | None
    """Of the pool; None: it had to be killed."""
    evidence: Evidence

    def went_as_planned(self, job_id: UUID) -> bool:
        """Whether its executions are those that were planned, and no more."""
        executions = self.evidence.executions.get(job_id, [])
        charged = tuple(run.outcome for run in executions if not run.is_uncharged)
        return charged == self.jobs[job_id].outcomes


@dataclass(frozen=True, slots=True)
class Check:
    """One promise. It holds if what was found is what was expected."""

    promise: str
    expected: str
    found: str
    hint: str = ""

    @property
    def holds(self) -> bool:
        return self.found == self.expected


def total(facts: Iterable[FileFacts]) -> Totals:
    """The sums over some files."""
    seen = list(facts)
    return Totals(
        len(seen),
        sum(found.size for found in seen),
        sum(found.lines for found in seen),
        sum(found.definitions or 0 for found in seen),
    )


def check_all(story: Story) -> list[Check]:
    """Every promise of the demo."""
    return [
        _is_final(story),
        _is_let_go(story),
        _went_as_planned(story),
        _is_like_the_loop(story),
        _is_written_once(story),
        _is_explained(story),
        _is_kill_explained(story),
        _has_stack(story),
        _has_drained(story),
    ]


def _is_final(story: Story) -> Check:
    found = {job_id: story.evidence.statuses.get(job_id, "gone") for job_id in story.jobs}
    odd = [job_id for job_id, job in story.jobs.items() if found[job_id] != job.status]
    expected = _counted(job.status.value for job in story.jobs.values())
    return Check("every job is in its final state", expected, _counted(found.values()), _examples(story, odd))


def _is_let_go(story: Story) -> Check:
    found = f"{story.evidence.waiting} waiting, {story.evidence.leased} leased"
    return Check("nothing waits, nothing is leased", "0 waiting, 0 leased", found)


def _went_as_planned(story: Story) -> Check:
    odd = [job_id for job_id in story.jobs if not story.went_as_planned(job_id)]
    hint = "; ".join(f"{_named(story, job_id)}: {_ends(story, job_id)}" for job_id in odd[:_EXAMPLES])
    return Check(
        "every job ran as often as planned, and ended as planned", "0 that did not", f"{len(odd)} that did not", hint
    )


def _is_like_the_loop(story: Story) -> Check:
    by_jobs = _found_by_jobs(story)
    odd = [
        job_id
        for job_id, job in story.jobs.items()
        if job.path is not None and by_jobs.get(job_id) != story.facts[job.path]
    ]
    expected, found = total(story.facts.values()), total(by_jobs.values())
    return Check(
        "each file's hash and counts, and their totals, are the plain loop's",
        f"0 that differ, {expected}",
        f"{len(odd)} that differ, {found}",
        _examples(story, odd),
    )


def _found_by_jobs(story: Story) -> dict[UUID, FileFacts]:
    """By the job's result, or by the row it wrote."""
    found = {row.job_id: row.facts for row in story.evidence.rows}
    for job_id, job in story.jobs.items():
        if job.task == jobs.examine.name:
            for run in story.evidence.executions.get(job_id, []):
                if run.result is not None:
                    found[job_id] = FileFacts(**run.result)
    return found


def _is_written_once(story: Story) -> Check:
    rows = Counter(row.job_id for row in story.evidence.rows)
    recorded = [job_id for job_id, job in story.jobs.items() if job.is_recorded]
    return Check(
        "what a job wrote in its transaction is there once",
        f"{len(recorded)} rows of {len(recorded)} jobs",
        f"{rows.total()} rows of {len(rows)} jobs",
        _examples(story, [job_id for job_id in recorded if rows[job_id] != 1]),
    )


def _is_explained(story: Story) -> Check:
    silent = [
        job_id
        for job_id, executions in story.evidence.executions.items()
        for run in executions
        if run.outcome in _UNSPOKEN and not run.cause
    ]
    unended = sum(worker.ended_how is None for worker in story.evidence.workers)
    found = f"{len(silent)} executions and {unended} workers without"
    return Check("every death has its cause", "0 executions and 0 workers without", found, _examples(story, silent))


def _is_kill_explained(story: Story) -> Check:
    """The database must name the very process that was killed, and the signal."""
    promise = "the worker that got kill -9 is named"
    if story.killed_pid is None:
        return Check(promise, "a worker that got it", "none: the job to kill it for did not run")
    expected = f"pid {story.killed_pid}, SIGKILL"
    causes = [
        run.cause or ""
        for job_id, job in story.jobs.items()
        if job is story.plan.victim
        for run in story.evidence.executions.get(job_id, [])
    ]
    is_named = any(f"(pid {story.killed_pid})" in cause and "SIGKILL" in cause for cause in causes)
    return Check(promise, expected, expected if is_named else "; ".join(filter(None, causes)) or "nothing")


def _has_stack(story: Story) -> Check:
    stacks = [
        (run.error or {}).get("traceback") or ""
        for job_id, job in story.jobs.items()
        if job.task == jobs.hang.name
        for run in story.evidence.executions.get(job_id, [])
    ]
    is_kept = any(" in hang" in stack for stack in stacks)
    return Check("the stack of the job that hung is kept", "hang() in it", "hang() in it" if is_kept else "no hang()")


def _has_drained(story: Story) -> Check:
    found = "killed, as it did not end" if story.exit_code is None else f"exit code {story.exit_code}"
    return Check("TERM drained the pool", "exit code 0", found)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))


def _examples(story: Story, odd: list[UUID]) -> str:
    return ", ".join(_named(story, job_id) for job_id in odd[:_EXAMPLES])


def _named(story: Story, job_id: UUID) -> str:
    return f"{story.jobs[job_id].task} {job_id}"


def _ends(story: Story, job_id: UUID) -> str:
    return ", ".join(run.outcome for run in story.evidence.executions.get(job_id, [])) or "never ran"
