"""What each statement of pgworker/sql/queries does to the database, all of it at the moment of its commit.

That is enough, since what a transaction has written or locked keeps everybody else away until then: a `lock` of a
lease, or a `Flight`, stands for that where a transaction goes on. `defects` are the mistakes that are planted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tests.chaos.model.state import (
    CANCELLED,
    CHARGED,
    CRASHED,
    SUCCEEDED,
    Canceller,
    Cell,
    Hand,
    Job,
    Lease,
    Ran,
    State,
    Waiting,
    lease_of,
    place_of,
    put,
    row_of,
)

Defects = frozenset[str]


# -- who may ask for what


def claimable(state: State, size: int, floor: int) -> tuple[int, ...]:
    """The jobs that a claim would lock now: it skips what others have locked."""
    locked = state.flight.jobs if state.flight is not None else ()
    due = [
        (job.waiting.place, index)
        for index, job in enumerate(state.jobs)
        if job.waiting is not None and job.waiting.place >= floor and index not in locked
    ]
    return tuple(index for _, index in sorted(due)[:size])


def is_locked(state: State, number: int) -> bool:
    lease = lease_of(state, number)
    return lease is not None and bool(lease.lock)


# -- the statements


def claim(state: State, number: int, owner: int, jobs: Sequence[int], attempts: int) -> tuple[State, tuple[Cell, ...]]:
    """claim_jobs.sql."""
    cells, after = [], state.jobs
    for index in jobs:
        job = after[index]
        waiting = job.waiting
        assert waiting is not None
        cells.append(Cell(index, waiting.execution, waiting.failures))
        offence = waiting.failures >= attempts
        after = put(after, index, job._replace(waiting=None))
        if offence:
            state = state._replace(offence="a job with all its failures runs again")
    lease = Lease(number, owner, tuple(cells))
    return state._replace(jobs=after, leases=tuple(sorted((*state.leases, lease)))), lease.cells


def settle(
    state: State,
    number: int,
    known: Sequence[Cell],
    outcomes: Mapping[int, str],
    ends: bool,
    attempts: int,
    defects: Defects,
) -> tuple[State, bool]:
    """settle_jobs.sql: `outcomes` by position. Whether all was recorded just now; `known`: what the worker claimed."""
    lease = lease_of(state, number)
    cells: Sequence[Cell] = lease.cells if lease is not None else ()
    if "no-fence" in defects:
        cells = known
    if "ends-by-count" in defects:  # the server counts, in its snapshot; the worker says no more when all is settled
        ends = lease is not None and bool(outcomes) and ends_by_count(state, lease, len(outcomes))
    recorded = 0
    for position, outcome in outcomes.items():
        if "settle-by-job" in defects:
            found = _held_by_anybody(state, known[position - 1].job)
        else:
            found = cells[position - 1] if position <= len(cells) else None
        if found is not None:
            before = state
            state = _end(state, number, found, outcome, attempts, defects)
            recorded += state is not before
    if lease is not None and ends:
        state = without(state, number)
    return state, recorded == len(outcomes) and (lease is not None or not outcomes)


def ends_by_count(state: State, lease: Lease, more: int) -> bool:
    """Whether all of a lease is settled with so many more: the planted defect asks this in place of the worker."""
    return len(unsettled(state, lease)) == more


def _held_by_anybody(state: State, job: int) -> Cell | None:
    return next((cell for lease in state.leases for cell in lease.cells if cell.job == job), None)


def _end(state: State, number: int, cell: Cell, outcome: str, attempts: int, defects: Defects) -> State:
    """One execution of a settle, its row and its way on. The same state: it has a row already."""
    job = state.jobs[cell.job]
    row = row_of(job, cell.execution)
    if row is not None and "no-conflict" not in defects:
        return _send_on(state, cell, outcome, attempts) if "requeue-what-was-asked" in defects else state
    lease = lease_of(state, number)
    if lease is None or all(held[:2] != cell[:2] for held in lease.cells):
        state = state._replace(offence="something was settled after its lease was lost")
    if outcome != SUCCEEDED and cell.is_marked and "settle-ignores-cancel" not in defects:
        outcome = CANCELLED
    job = job._replace(rows=(*job.rows, Ran(cell.execution, outcome, number, True)))
    state = state._replace(jobs=put(state.jobs, cell.job, job))
    return _send_on(state, cell, outcome, attempts)


def _send_on(state: State, cell: Cell, outcome: str, attempts: int) -> State:
    """The job of an execution with this outcome, on conflict do nothing."""
    if outcome in (SUCCEEDED, CANCELLED):
        return state
    job = state.jobs[cell.job]
    failures = cell.failures + (outcome in CHARGED)
    if failures >= attempts:
        return state._replace(jobs=put(state.jobs, cell.job, job._replace(is_dead=True)))
    if job.waiting is None:
        job = job._replace(waiting=Waiting(cell.execution + 1, failures, place_of(cell.job, later=True)))
    return state._replace(jobs=put(state.jobs, cell.job, job))


def find_own(state: State, number: int, cells: Sequence[Cell], positions: Sequence[int]) -> bool:
    """find_own_executions.sql: whether this very lease has settled them all."""
    for position in positions:
        cell = cells[position - 1]
        row = row_of(state.jobs[cell.job], cell.execution)
        if row is None or not row.settled or row.lease != number:
            return False
    return True


def release(state: State, number: int, first: int, defects: Defects) -> tuple[State, tuple[int, ...]]:
    """release_jobs.sql, of a lease that is not locked. The places to which jobs went back."""
    lease = lease_of(state, number)
    if lease is None or first > len(lease.cells):
        return state, ()
    jobs, places = state.jobs, []
    for cell in lease.cells[first - 1 :]:
        job = jobs[cell.job]
        if cell.is_marked:
            job = job._replace(rows=(*job.rows, Ran(cell.execution, CANCELLED, 0, False)))
        elif job.waiting is None:
            place = place_of(cell.job)
            job = job._replace(waiting=Waiting(cell.execution, cell.failures, place))
            places.append(place)
        jobs = put(jobs, cell.job, job)
    state = state._replace(jobs=jobs)
    if first == 1:
        return without(state, number), tuple(places)
    if "release-keeps-tail" not in defects:
        state = with_lease(state, lease._replace(cells=lease.cells[: first - 1]))
    return state, tuple(places)


def send_on(
    state: State, hand: Hand, verdicts: Sequence[str | None], assumed_running: int, attempts: int, defects: Defects
) -> tuple[State, tuple[int, ...]]:
    """reclaim_jobs.sql, and the commit with it. `verdicts`: by position, None for never started. Where jobs went."""
    lease = lease_of(state, hand.lease)
    assert lease is not None
    places, unfinished = [], 0
    for position, cell in enumerate(lease.cells):
        job = state.jobs[cell.job]
        if _has_row(job, cell, hand, defects):
            continue
        unfinished += 1
        outcome = CRASHED if unfinished <= assumed_running else verdicts[position]
        if cell.is_marked and "reclaim-forgets-cancel" not in defects:
            outcome = CANCELLED
        job, place = _reclaimed(job, cell, outcome, lease.number, attempts, defects)
        if place is not None:
            places.append(place)
        state = state._replace(jobs=put(state.jobs, cell.job, job))
    return without(state, lease.number), tuple(places)


def _has_row(job: Job, cell: Cell, hand: Hand, defects: Defects) -> bool:
    if "one-snapshot" in defects:
        return (cell.job, cell.execution) in hand.snapshot
    return row_of(job, cell.execution) is not None


def _reclaimed(
    job: Job, cell: Cell, outcome: str | None, number: int, attempts: int, defects: Defects
) -> tuple[Job, int | None]:
    if outcome is not None and row_of(job, cell.execution) is None:
        job = job._replace(rows=(*job.rows, Ran(cell.execution, outcome, number, False)))
    if outcome == CANCELLED:
        return job, None
    failures = cell.failures + (outcome in CHARGED)
    if failures >= attempts and "no-limit-at-reclaim" not in defects:
        return job._replace(is_dead=True), None
    if job.waiting is not None:
        return job, None
    place = place_of(cell.job, later=failures > max(1, cell.failures))
    return job._replace(waiting=Waiting(cell.execution + 1, failures, place)), place


def cancel_waiting(state: State, index: int) -> State:
    """cancel_waiting_jobs.sql, of a job that waits and that nobody has locked."""
    job = state.jobs[index]
    assert job.waiting is not None
    row = Ran(job.waiting.execution, CANCELLED, 0, False)
    return state._replace(jobs=put(state.jobs, index, job._replace(waiting=None, rows=(*job.rows, row))))


def mark(state: State, asked: Canceller, defects: Defects) -> State | None:
    """cancel_running_job.sql, after lock_leases_of_job.sql in the same transaction. None: nothing of it runs there."""
    lease = lease_of(state, asked.lease)
    if lease is None:
        return None
    for position, cell in enumerate(lease.cells):
        if cell.job != asked.job:
            continue
        if row_of(state.jobs[asked.job], cell.execution) is not None and "cancel-in-one-statement" not in defects:
            return None
        state = with_lease(state, lease._replace(cells=put(lease.cells, position, cell._replace(is_marked=True))))
        job = state.jobs[asked.job]
        return state._replace(jobs=put(state.jobs, asked.job, job._replace(is_asked=True)))
    return None


# -- rows of job_leases


def without(state: State, number: int) -> State:
    return state._replace(leases=tuple(lease for lease in state.leases if lease.number != number))


def with_lease(state: State, changed: Lease) -> State:
    return state._replace(leases=tuple(changed if lease.number == changed.number else lease for lease in state.leases))


def unsettled(state: State, lease: Lease) -> list[Cell]:
    return [cell for cell in lease.cells if row_of(state.jobs[cell.job], cell.execution) is None]


# -- what statements leave to their callers


def lowered(floor: int, place: int) -> int:
    """Floors.lower: below a job that is there again, and by the least step where it is below it already."""
    return place if place < floor else max(floor - 1, 0)


def fresh(state: State) -> tuple[State, int]:
    """A lease number that nobody knows of. What it meant before is forgotten: nobody is left who could ask."""
    known = set(_known(state))
    number = next(number for number in range(1, len(known) + 2) if number not in known)
    jobs = tuple(
        job._replace(rows=tuple(row._replace(lease=0) if row.lease == number else row for row in job.rows))
        if any(row.lease == number for row in job.rows)
        else job
        for job in state.jobs
    )
    return state._replace(jobs=jobs), number


def _known(state: State) -> Iterator[int]:
    for lease in state.leases:
        yield lease.number
    for worker in state.workers:
        yield from (held.lease for held in worker.held)
        yield from worker.lost_claims
        if worker.trip is not None:
            yield worker.trip.claim
            yield from (told.lease for told in worker.trip.told)
    for monitor in state.monitors:
        if monitor.hand is not None:
            yield monitor.hand.lease
        if monitor.line is not None:
            yield monitor.line.lease
        yield from (entry[0] for witness in monitor.witnesses for entry in witness.leases)
    if state.flight is not None:
        yield state.flight.claim
        yield from (told.lease for told in state.flight.told)
    if state.canceller is not None:
        yield state.canceller.lease
