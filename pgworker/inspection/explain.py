"""Explain: why a job doesn't run, or where it runs, or how it ended, and what to do about it. From facts alone."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from uuid import UUID

from pgworker.inspection.facts import Facts, Servers
from pgworker.inspection.jobs import ClaimRecord, ExecutionRecord
from pgworker.inspection.queues import Count
from pgworker.inspection.workers import SILENT_AFTER
from pgworker.model.display import ago, utc
from pgworker.model.durations import duration
from pgworker.model.failure import describe_stored, why_failed
from pgworker.model.state import WorkerState

_LONGEST = 300
"""Characters of what an error said."""

_ORDINALS = ("next", "second", "third", "fourth", "fifth")


class Reason(str, Enum):
    """What a job waits for, or why it waits no more."""

    RUNNING = "running"
    IN_LINE = "in_line"
    """claimed by a worker, which runs others before it"""
    WORKER_SILENT = "worker_silent"
    WORKER_ENDED = "worker_ended"
    LEASE_EXPIRED = "lease_expired"
    SCHEDULED = "scheduled"
    RETRY = "retry"
    QUEUE_PAUSED = "queue_paused"
    NO_WORKERS = "no_workers"
    QUEUE_UNSERVED = "queue_unserved"
    TASK_UNSERVED = "task_unserved"
    WORKERS_SILENT = "workers_silent"
    WORKERS_NOT_CLAIMING = "workers_not_claiming"
    """paused, draining or not yet ready, all that would run it"""
    BACKLOG = "backlog"
    WORKERS_BUSY = "workers_busy"
    DUE = "due"
    """nothing is in its way"""
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One or two sentences, and the command that helps, if there is one."""

    reason: Reason
    sentence: str
    command: str | None = None


def explain(facts: Facts) -> Explanation:
    """What there is to say of a job, the one thing that matters first."""
    job = facts.detail.job
    if facts.detail.claim is not None:
        return _claimed(facts, facts.detail.claim)
    match job.status:
        case "pending" | "scheduled" | "failed":
            return _waiting(facts)
        case "dead_letter":
            return _dead(facts)
        case "succeeded" | "cancelled":
            return _ended(facts)
    return Explanation(
        Reason.LOST,
        "It is nowhere, which must not happen: please report this as a bug of pgworker.",
        f"pgworker jobs show {job.id}",
    )


# -- claimed


def _claimed(facts: Facts, claim: ClaimRecord) -> Explanation:
    now = facts.detail.job.seen_at
    if claim.ended_how is not None:
        return Explanation(
            Reason.WORKER_ENDED,
            f"Its worker, {worker_name(claim)}, has ended ({claim.ended_how}). {_reclaim(facts)}",
        )
    if claim.expires_at < now:
        return Explanation(
            Reason.LEASE_EXPIRED,
            f"It was claimed {ago(claim.claimed_at, now)} by {worker_name(claim)}, whose lease ended "
            f"{ago(claim.expires_at, now)}. {_reclaim(facts)}",
        )
    silence = 0.0 if claim.beat_at is None else (now - claim.beat_at).total_seconds()
    if silence > SILENT_AFTER:
        left = duration((claim.expires_at - now).total_seconds())
        if any(one.alive for one in facts.servers):
            then = "; if it is not heard of by then, a pool takes the job back"
        else:
            then = ", and no pool is alive to take the job back after that: start one with `pgworker start`"
        return Explanation(
            Reason.WORKER_SILENT,
            f"Its worker, {worker_name(claim)}, has been silent for {duration(silence)}. "
            f"Its lease ends in {left}{then}.",
        )
    asked = " Somebody has asked it to stop." if claim.cancel_requested else ""
    if claim.started_at is not None:
        return Explanation(Reason.RUNNING, f"It runs on {worker_name(claim)}, for {_ran(facts, claim)}.{asked}")
    return Explanation(
        Reason.IN_LINE,
        f"It was claimed {ago(claim.claimed_at, now)} by {worker_name(claim)}, {_place(facts)}.{asked}",
        f"pgworker jobs explain {facts.line[0]}" if facts.line else None,
    )


def _ran(facts: Facts, claim: ClaimRecord) -> str:
    job = facts.detail.job
    assert claim.started_at is not None
    ran = (job.seen_at - claim.started_at).total_seconds()
    if job.timeout is None:
        return duration(ran)
    left = job.timeout - ran
    return f"{duration(ran)}; its time {f'is up in {duration(left)}' if left > 0 else f'was up {duration(-left)} ago'}"


def _place(facts: Facts) -> str:
    if not facts.line:
        return "which starts it now, or has since its last heartbeat"
    ahead = len(facts.line)
    place = _ORDINALS[ahead] if ahead < len(_ORDINALS) else f"number {ahead + 1}"
    return f"{place} in line behind {facts.line[0]}"


def _reclaim(facts: Facts) -> str:
    if any(one.alive for one in facts.servers):
        return "A pool takes the job back within seconds."
    return "No pool is alive to take the job back: start one with `pgworker start`."


def worker_name(record: ClaimRecord | ExecutionRecord) -> str:
    """Its place, host and pid, as far as it is still known."""
    if record.host is None:
        return f"worker {record.worker_id} (nothing else is known of it)"
    return f"worker {record.worker_number} on host {record.host} (pid {record.pid})"


# -- waiting


def _waiting(facts: Facts) -> Explanation:
    job, found = facts.detail.job, obstacle(facts)
    ahead = (job.run_at - job.seen_at).total_seconds()
    if ahead > 0:
        then = "" if found is None else f" It will not then: {_lowered(found.sentence)}"
        reason = Reason.RETRY if job.failures else Reason.SCHEDULED
        when = f"{'runs again' if job.failures else 'is due'} in {duration(ahead)}, at {utc(job.run_at)}"
        sentence = f"{_failures(facts)}It {when}.{then}"
        command = f"pgworker jobs retry {job.id}" if found is None else found.command
        return Explanation(reason, sentence, command)
    found = found or _backlog(facts)
    return Explanation(found.reason, f"{_failures(facts)}{found.sentence}", found.command)


def _failures(facts: Facts) -> str:
    job = facts.detail.job
    if not job.failures:
        return ""
    said = next((said for ended in facts.detail.executions if (said := _clip(describe_stored(ended.error)))), "")
    return f"It has failed {job.failures} of {job.max_attempts} times{f', last with {said}' if said else ''}. "


def obstacle(facts: Facts) -> Explanation | None:
    """What keeps a job that waits from running whenever it is due; None: nothing but what comes before it."""
    job, servers = facts.detail.job, facts.servers
    if facts.paused_for is not None:
        return Explanation(
            Reason.QUEUE_PAUSED,
            f"Its queue, {job.queue}, has been paused for {duration(facts.paused_for)}.",
            f"pgworker queues resume {job.queue}",
        )
    living = [one for one in servers if one.alive]
    able = [one for one in living if one.serves(job.queue, job.task)]
    if not able:
        silent = [one for one in servers if one.silent and one.serves(job.queue, job.task)]
        if silent:
            least = min(one.least_silence for one in silent)
            return Explanation(
                Reason.WORKERS_SILENT,
                f"All workers that serve it ({sum(one.silent for one in silent)}) have been silent for "
                f"{duration(least)} or more: are their hosts up, do they reach the database?",
                "pgworker workers",
            )
        return _unserved(facts, living)
    if not any(one.states.get(WorkerState.IDLE) or one.states.get(WorkerState.BUSY) for one in able):
        return Explanation(
            Reason.WORKERS_NOT_CLAIMING,
            f"No worker that serves it claims anything: {_states(able)}.",
            "pgworker workers",
        )
    return None


def _unserved(facts: Facts, living: list[Servers]) -> Explanation:
    job = facts.detail.job
    ended = None if facts.last_end is None else f"{duration(facts.last_end.seconds)} ago: {facts.last_end.how}"
    if not living:
        of_its_queue = "" if ended is None else f" The last one of its queue ended {ended}."
        return Explanation(
            Reason.NO_WORKERS, f"No worker is alive on any host.{of_its_queue}", "pgworker start --app MODULE:APP"
        )
    there = [one for one in living if one.serves(job.queue)]
    if not there:
        served = {queue for one in living for queue in one.queues}
        instead = _instead(job.queue, served) if ended is None else f"; the last one that did ended {ended}."
        return Explanation(
            Reason.QUEUE_UNSERVED,
            f"No living worker serves the queue {job.queue}{instead}",
            _cancel(job.id) if "did you mean" in instead else f"pgworker start --app MODULE:APP -q {job.queue}",
        )
    elsewhere = sorted({queue for one in living if one.tasks and job.task in one.tasks for queue in one.queues})
    if elsewhere:
        said = f"; those of {', '.join(elsewhere)} do."
    else:
        said = _instead(job.task, {task for one in there for task in one.tasks or ()})
    return Explanation(
        Reason.TASK_UNSERVED,
        f"No living worker of the queue {job.queue} serves the task {job.task}{said}",
        _cancel(job.id),
    )


def _cancel(job_id: UUID) -> str:
    return f"pgworker jobs cancel {job_id}  # if it was a mistake"


def _instead(name: str, known: set[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ": is it deployed, is its name right?"


def _backlog(facts: Facts) -> Explanation:
    """Nothing keeps it from running but what others run or will run first."""
    job = facts.detail.job
    able = [one for one in facts.servers if one.alive and one.serves(job.queue, job.task)]
    idle = sum(one.states.get(WorkerState.IDLE, 0) for one in able)
    due_at = max([job.run_at, *(run.finished_at for run in facts.detail.executions)])  # not while it ran
    waits = duration((job.seen_at - due_at).total_seconds())
    if facts.ahead.number:
        return Explanation(
            Reason.BACKLOG,
            f"It has been due for {waits} and waits behind {_jobs(facts.ahead)} of a higher priority or an earlier "
            f"time. Of its workers, {_states(able)}.",
            "pgworker queues list" if idle else "pgworker workers",
        )
    if not idle:
        return Explanation(
            Reason.WORKERS_BUSY,
            f"It has been due for {waits} and is the first in line, but no worker is free: {_states(able)}.",
            "pgworker workers",
        )
    return Explanation(
        Reason.DUE, f"It has been due for {waits}, and a worker is free: it is claimed within a second or two."
    )


def _states(able: list[Servers]) -> str:
    counts = [(state, sum(one.states.get(state, 0) for one in able)) for state in WorkerState]
    told = {WorkerState.PAUSED: "paused (USR2 to the master resumes)"}
    return ", ".join(f"{count} {_are(count)} {told.get(state, state.value)}" for state, count in counts if count)


# -- ended


def _ended(facts: Facts) -> Explanation:
    job = facts.detail.job
    last = facts.detail.executions[0]
    when = ago(last.finished_at, job.seen_at)
    if job.status == "cancelled":
        cause = f": {last.cause}" if last.cause else ""
        return Explanation(Reason.CANCELLED, f"It was cancelled {when}{cause}.")
    took = "" if last.started_at is None else f", in {duration((last.finished_at - last.started_at).total_seconds())}"
    where = "" if last.worker_id is None else f", by {worker_name(last)}"
    return Explanation(Reason.SUCCEEDED, f"It succeeded {when}{took}{where}.")


def _dead(facts: Facts) -> Explanation:
    dead = facts.dead
    assert dead is not None
    why = _clip(why_failed(dead.outcome, dead.error, dead.cause))
    tries = f" after {dead.failures} failure{'s' if dead.failures > 1 else ''}" if dead.failures else ""
    return Explanation(
        Reason.DEAD_LETTER,
        f"It was given up {ago(dead.died_at, dead.seen_at)}{tries}: {why}. It is a dead letter, and runs again only "
        "if it is requeued.",
        f"pgworker dead-letters requeue {dead.job_id}",
    )


# -- words


def _clip(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _jobs(count: Count) -> str:
    number = f"{count.number:,}"
    return f"{number} or more jobs" if count.is_more else f"{number} job{'s' if count.number != 1 else ''}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
