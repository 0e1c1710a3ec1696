"""What the demo promises, held against what the database says and what the plain loop found. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from pgworker.demo import jobs
from pgworker.demo.evidence import Evidence, Execution
from pgworker.demo.files import FileFacts
from pgworker.demo.plan import Plan, PlannedJob
from pgworker.model.state import Outcome

_UNSPOKEN = (Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.LOST, Outcome.RELEASED)
"""How an execution ends that could not say so itself."""


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

    def executions_of(self, task: str) -> list[Execution]:
        """All executions of the jobs of one task."""
        return [
            execution
            for job_id, job in self.jobs.items()
            if job.task == task
            for execution in self.evidence.executions.get(job_id, [])
        ]


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
        _is_stored(story),
        _is_final(story),
        _is_let_go(story),
        _went_as_planned(story),
        _is_like_the_loop(story),
        _is_total_like_the_loop(story),
        _is_written_once(story),
        _is_explained(story),
        _is_kill_explained(story),
        _has_stack(story),
        _has_drained(story),
        _has_ended(story),
    ]


def _is_stored(story: Story) -> Check:
    return Check("every job is stored", f"{len(story.jobs)} jobs", f"{len(story.evidence.statuses)} jobs")


def _is_final(story: Story) -> Check:
    found = {job_id: story.evidence.statuses.get(job_id, "gone") for job_id in story.jobs}
    odd = [job_id for job_id, job in story.jobs.items() if found[job_id] != job.status]
    expected = _counted(job.status.value for job in story.jobs.values())
    return Check("every job is in its final state", expected, _counted(found.values()), _examples(story, odd))


def _is_let_go(story: Story) -> Check:
    seen = story.evidence
    return Check("nothing waits or is leased", _held(0, 0), _held(seen.waiting, seen.leased))


def _held(waiting: int, leased: int) -> str:
    return f"{waiting} waiting, {leased} leased"


def _went_as_planned(story: Story) -> Check:
    odd = []
    for job_id, job in story.jobs.items():
        executions = story.evidence.executions.get(job_id, [])
        if [run.outcome for run in executions if not run.is_uncharged] != list(job.outcomes):
            odd.append(job_id)
    return Check("every job ran as often as planned, and ended as planned", "0 others", _others(odd), _ends(story, odd))


def _is_like_the_loop(story: Story) -> Check:
    found = _found_by_jobs(story)
    odd = [
        job_id
        for job_id, job in story.jobs.items()
        if job.path is not None and found.get(job_id) != story.facts[job.path]
    ]
    return Check("each file's hash and counts are the plain loop's", "0 others", _others(odd), _examples(story, odd))


def _is_total_like_the_loop(story: Story) -> Check:
    expected, found = total(story.facts.values()), total(_found_by_jobs(story).values())
    return Check("the totals are the plain loop's", str(expected), str(found))


def _found_by_jobs(story: Story) -> dict[UUID, FileFacts]:
    """By result or by written row, as the job's task has it."""
    found = {row.job_id: row.facts for row in story.evidence.rows}
    for job_id, job in story.jobs.items():
        if job.task == jobs.examine.name:
            results = [run.result for run in story.evidence.executions.get(job_id, []) if run.result is not None]
            found |= {job_id: FileFacts(**result) for result in results}
    return found


def _is_written_once(story: Story) -> Check:
    rows = Counter(row.job_id for row in story.evidence.rows)
    recorded = [job_id for job_id, job in story.jobs.items() if job.is_recorded]
    odd = [job_id for job_id in recorded if rows[job_id] != 1]
    return Check(
        "what a job wrote in its transaction is there once",
        f"{len(recorded)} rows of {len(recorded)} jobs",
        f"{rows.total()} rows of {len(rows)} jobs",
        _examples(story, odd),
    )


def _is_explained(story: Story) -> Check:
    silent = [
        job_id
        for job_id, executions in story.evidence.executions.items()
        for run in executions
        if run.outcome in _UNSPOKEN and not run.cause
    ]
    return Check("every death has its cause", "0 without", f"{len(silent)} without", _examples(story, silent))


def _is_kill_explained(story: Story) -> Check:
    """The database must name the very process that was killed, and the signal."""
    if story.killed_pid is None:
        return Check("the worker that was killed is named", "one was killed", "its job never ran")
    expected = f"pid {story.killed_pid}, SIGKILL"
    victims = [job_id for job_id, job in story.jobs.items() if job is story.plan.victim]
    causes = [run.cause or "" for job_id in victims for run in story.evidence.executions.get(job_id, [])]
    named = any(f"(pid {story.killed_pid})" in cause and "SIGKILL" in cause for cause in causes)
    return Check("the worker that was killed is named", expected, expected if named else "; ".join(causes) or "nothing")


def _has_stack(story: Story) -> Check:
    stacks = [(run.error or {}).get("traceback") or "" for run in story.executions_of(jobs.hang.name)]
    kept = any(" in hang" in stack for stack in stacks)
    return Check("the stack of the job that hung is kept", "in hang()", "in hang()" if kept else "no such line")


def _has_drained(story: Story) -> Check:
    found = "killed, as it did not end" if story.exit_code is None else f"exit code {story.exit_code}"
    return Check("TERM drained the pool", "exit code 0", found)


def _has_ended(story: Story) -> Check:
    running = [worker.pid for worker in story.evidence.workers if worker.ended_how is None]
    return Check("the end of every worker is recorded", "0 missing", f"{len(running)} missing")


def _others(odd: list[UUID]) -> str:
    return f"{len(odd)} others"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))


def _examples(story: Story, odd: list[UUID]) -> str:
    return ", ".join(f"{story.jobs[job_id].task} {job_id}" for job_id in odd[:3])


def _ends(story: Story, odd: list[UUID]) -> str:
    """What did happen to the first of them."""
    said = []
    for job_id in odd[:3]:
        outcomes = [run.outcome for run in story.evidence.executions.get(job_id, [])]
        said.append(f"{story.jobs[job_id].task} {job_id}: {', '.join(outcomes) or 'never ran'}")
    return "; ".join(said)
