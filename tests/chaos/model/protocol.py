"""The whole protocol: every step from a state, and what must be true in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos.model import monitors, workers, world
from tests.chaos.model.state import (
    CANCELLED,
    CHARGED,
    SUCCEEDED,
    Configuration,
    Job,
    State,
    row_of,
)
from tests.chaos.model.statements import Defects, unsettled
from tests.chaos.model.workers import Step


@dataclass(frozen=True, slots=True)
class Protocol:
    config: Configuration
    defects: Defects = frozenset()

    def start(self) -> State:
        return self.config.start()

    def steps(self, state: State) -> Iterator[Step]:
        """What may happen next: its name, whether it is a fault, and what is so then."""
        for index in range(len(state.workers)):
            yield from workers.steps(state, index, self.config, self.defects)
        yield from monitors.steps(state, self.config, self.defects)
        yield from world.steps(state, self.config, self.defects)

    def offence(self, state: State) -> str:
        """The invariant that is broken; empty: none is."""
        if state.offence:
            return state.offence
        for index, job in enumerate(state.jobs):
            if said := _offence_of(state, index, job, self.config.attempts):
                return said
        return _left_behind(state)

    def is_quiet(self, state: State) -> bool:
        """All jobs have ended, and nobody holds or waits for anything."""
        return (
            all(job.is_stored and job.waiting is None for job in state.jobs)
            and not state.leases
            and state.flight is None
            and all(not worker.held and not worker.trip and not worker.lost_claims for worker in state.workers)
            and all(not monitor.hand and not monitor.line for monitor in state.monitors)
        )


def _offence_of(state: State, index: int, job: Job, attempts: int) -> str:
    runs = sum(cell.job == index for lease in state.leases for cell in unsettled(state, lease))
    last = max(job.rows, default=None)
    has_ended = last is not None and last.outcome in (SUCCEEDED, CANCELLED)
    places = (job.waiting is not None) + runs + job.is_dead + has_ended
    if places != job.is_stored:
        return f"job {index} is in {places} places"
    if len({row.execution for row in job.rows}) < len(job.rows):
        return f"an execution of job {index} has two outcomes"
    if sum(row.outcome in CHARGED for row in job.rows) > attempts:
        return f"job {index} has more failures than attempts"
    if any(row.outcome == CANCELLED for row in job.rows) and not has_ended:
        return f"job {index} goes on after it was cancelled"
    if job.is_asked and (job.waiting is not None or job.is_dead):
        return f"job {index} goes on after a cancel was told that it would stop"
    for execution in job.effects:
        row = row_of(job, execution)
        if row is None or row.outcome != SUCCEEDED:
            return f"an effect of job {index} happened in an execution that did not succeed"
    if len(set(job.effects)) < len(job.effects) or len(job.effects) > 1:
        return f"an effect of job {index} happened twice"
    return ""


def _left_behind(state: State) -> str:
    """A lease in which all is settled is ended by its holder; if he lives, and nothing of it is under way."""
    for lease in state.leases:
        if unsettled(state, lease) or lease.lock or state.flight is not None:
            continue
        for worker in state.workers:
            knows = any(held.lease == lease.number for held in worker.held) or worker.trip or worker.lost_claims
            if worker.is_alive and worker.incarnation == lease.owner and not knows:
                return "a lease is left behind in which all is settled"
    return ""
