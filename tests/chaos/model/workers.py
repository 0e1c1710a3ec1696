"""What a worker does by itself: its runner starts jobs, its clerk makes trips and hands back.

See pgworker/worker/runner.py, worker/clerk.py, worker/transaction.py, app/queue/postgres.py, app/queue/leases.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.model import statements
from tests.chaos.model.state import (
    CANCELLED,
    FAILED,
    RECORDED,
    RUNNING,
    SUCCEEDED,
    UNSTARTED,
    Cell,
    Configuration,
    Flight,
    Held,
    Job,
    Run,
    State,
    Told,
    Trip,
    Worker,
    lease_of,
    place_of,
    put,
    with_fewer,
)
from tests.chaos.model.statements import Defects

Step = tuple[str, bool, State]
"""What happens, whether it is a fault, and what is so after it."""

LEASES = 2
"""How many a worker holds at most."""

_SETTLEABLE = (SUCCEEDED, FAILED, CANCELLED)


def steps(state: State, index: int, config: Configuration, defects: Defects) -> Iterator[Step]:
    worker = state.workers[index]
    if not worker.is_alive or state.is_stopped:
        return
    who = f"worker {index}"
    yield from _run(state, index, who, config, defects)
    if worker.trip is not None:
        yield from _hear(state, index, who, defects)
    else:
        yield from _give_back(state, index, who, config, defects)
        yield from _trip(state, index, who, config, defects)


# -- the runner


def _run(state: State, index: int, who: str, config: Configuration, defects: Defects) -> Iterator[Step]:
    worker = state.workers[index]
    if worker.run is None:
        yield from _start(state, index, who, config)
    elif not worker.run.is_checked:
        yield _check(state, index, who)
    elif not _is_in_own_transaction(state, index):
        yield from _finish(state, index, who, config)
        if config.own_transactions and state.flight is None:
            yield from _open(state, index, who, config, defects)


def _start(state: State, index: int, who: str, config: Configuration) -> Iterator[Step]:
    """The next job in order is shown as started; with nobody who draws lines it needs no second look."""
    worker = state.workers[index]
    for held in worker.held:
        if held.is_going_back or held.is_refused or held.started >= held.kept:
            continue
        position = held.started + 1
        shown = _hold(state, index, held._replace(started=position), Run(held.lease, position, False))
        if config.lines:
            yield f"{who} shows the start of {_name(held, position)}", False, shown
        else:
            yield _check(shown, index, who)
        return


def _check(state: State, index: int, who: str) -> Step:
    worker = state.workers[index]
    run = worker.run
    assert run is not None
    held = _held(worker, run.lease)
    position = run.position
    if held.is_lost or (held.line is not None and position > held.line):
        refused = held._replace(started=position - 1, is_refused=True)
        return f"{who} may not start {_name(held, position)}", False, _hold(state, index, refused, None)
    lease = lease_of(state, held.lease)
    if lease is not None and position > len(lease.cells):
        state = state._replace(offence="a job starts that its own monitor has given back")
    cell = held.cells[position - 1]
    job = state.jobs[cell.job]
    state = _with_job(state, cell.job, job._replace(started=max(job.started, cell.execution)))
    held = held._replace(books=put(held.books, position - 1, RUNNING))
    return f"{who} runs {_name(held, position)}", False, _hold(state, index, held, run._replace(is_checked=True))


def _finish(state: State, index: int, who: str, config: Configuration) -> Iterator[Step]:
    """Outcomes of the handler go into the books; the clerk will tell them."""
    worker = state.workers[index]
    run = worker.run
    assert run is not None
    held = _held(worker, run.lease)
    name = _name(held, run.position)
    yield f"{who}: {name} succeeds", False, _end(state, index, held, run.position, SUCCEEDED)
    if state.budgets.failures:
        failing = with_fewer(state, "failures")
        yield f"{who}: {name} fails", True, _end(failing, index, held, run.position, FAILED)
    lease = lease_of(state, held.lease)
    if lease is not None and any(cell.is_marked for cell in lease.cells[run.position - 1 : run.position]):
        yield f"{who}: {name} sees that it is cancelled", False, _end(state, index, held, run.position, CANCELLED)


def _end(state: State, index: int, held: Held, position: int, outcome: str) -> State:
    cell = held.cells[position - 1]
    late = (*held.late, position) if state.jobs[cell.job].started > cell.execution else held.late
    held = held._replace(books=put(held.books, position - 1, outcome), late=late)
    return _hold(state, index, held, None)


# -- a handler's own transaction


def _is_in_own_transaction(state: State, index: int) -> bool:
    flight = state.flight
    worker = state.workers[index]
    return flight is not None and flight.own and flight.incarnation == worker.incarnation


def _open(state: State, index: int, who: str, config: Configuration, defects: Defects) -> Iterator[Step]:
    """It has settled its position under the lease's lock, and its COMMIT is next."""
    worker = state.workers[index]
    run = worker.run
    assert run is not None
    if statements.is_locked(state, run.lease):
        return
    held = _held(worker, run.lease)
    name = _name(held, run.position)
    lease = lease_of(state, held.lease)
    if (lease is None or run.position > len(lease.cells)) and "effect-outside-fence" not in defects:
        yield (
            f"{who}: {name} finds its lease gone, and rolls back",
            False,
            _end(state, index, held, run.position, FAILED),
        )
        return
    told = Told(held.lease, (run.position,), False, True)
    counts = "ends-by-count" in defects
    if counts and lease is not None:
        told = told._replace(ends=statements.ends_by_count(state, lease, 1))
    flight = Flight(index, worker.incarnation, (told,), ((SUCCEEDED,),), 0, (), own=True)
    state = state._replace(flight=flight)
    if lease is not None and not counts:
        state = statements.with_lease(state, lease._replace(lock="T"))
    yield f"{who}: {name} settles itself in its own transaction", False, state


# -- the clerk: trips


def _trip(state: State, index: int, who: str, config: Configuration, defects: Defects) -> Iterator[Step]:
    """Settle what has ended and perhaps claim, in one transaction."""
    worker = state.workers[index]
    news = [
        (told, outcomes)
        for held in worker.held
        if (told := _news(held, defects))
        for outcomes in [_outcomes(held, told)]
    ]
    if any(statements.is_locked(state, told.lease) for told, _ in news):
        return  # it waits for that lock
    ending = sum(told.ends for told, _ in news)
    may_claim = len(worker.held) - ending < LEASES and all(held.started >= held.kept for held in worker.held)
    jobs = statements.claimable(state, config.batch, state.floor) if may_claim else ()
    for claims in (False, True) if jobs else (False,):
        if claims or news:
            yield from _send(state, index, who, config, defects, news, jobs if claims else ())


def _send(
    state: State,
    index: int,
    who: str,
    config: Configuration,
    defects: Defects,
    news: list[tuple[Told, tuple[str, ...]]],
    jobs: tuple[int, ...],
) -> Iterator[Step]:
    worker = state.workers[index]
    number = 0
    if jobs:
        state, number = statements.fresh(state)
    said = " and ".join(
        [
            f"settles {_names(_held(worker, told.lease), told.positions)}{' and its lease' if told.ends else ''}"
            for told, _ in news
        ]
        + ([f"claims {_jobs(jobs)} as lease {number}"] if jobs else [])
    )
    flight = Flight(
        index, worker.incarnation, tuple(told for told, _ in news), tuple(o for _, o in news), number, jobs, False
    )
    committed, told, cells = commit(state, flight, config, defects)
    trip = Trip(told, number, cells, state.floor)
    sent = _with_worker(committed, index, worker._replace(trip=trip))
    yield f"{who} {said}", False, sent
    if state.budgets.flights and state.flight is None:
        locked = with_fewer(state, "flights")._replace(flight=flight)
        for told_, _ in news:
            lease = lease_of(locked, told_.lease)
            if lease is not None:
                locked = statements.with_lease(locked, lease._replace(lock="T"))
        lost = worker._replace(lost_claims=(*worker.lost_claims, number) if number else worker.lost_claims)
        yield f"{who} {said}: its connection dies, and the transaction goes on", True, _with_worker(locked, index, lost)


def commit(
    state: State, flight: Flight, config: Configuration, defects: Defects
) -> tuple[State, tuple[Told, ...], tuple[Cell, ...]]:
    """All that one transaction does, when it commits."""
    answers = []
    worker = state.workers[flight.worker]
    if flight.own:
        defects -= {"ends-by-count"}  # it has counted when it locked
    for told, outcomes in zip(flight.told, flight.outcomes, strict=True):
        held = next((held for held in worker.held if held.lease == told.lease), None)
        lease = lease_of(state, told.lease)
        known = held.cells if held is not None else lease.cells if lease is not None else ()
        if lease is not None and lease.lock == "T":
            state = statements.with_lease(state, lease._replace(lock=""))
        by_position = dict(zip(told.positions, outcomes, strict=True))
        state, is_complete = statements.settle(
            state, told.lease, known, by_position, told.ends, config.attempts, defects
        )
        if held is not None and any(position in held.late for position in told.positions) and is_complete:
            state = state._replace(offence="executions of one job overlap in what is recorded")
        answers.append(told._replace(is_complete=is_complete))
        if flight.own:
            for position in told.positions:
                cell = known[position - 1]
                job = state.jobs[cell.job]
                state = _with_job(state, cell.job, job._replace(effects=(*job.effects, cell.execution)))
    cells: tuple[Cell, ...] = ()
    if flight.jobs:
        state, cells = statements.claim(state, flight.claim, flight.incarnation, flight.jobs, config.attempts)
    return state, tuple(answers), cells


def _news(held: Held, defects: Defects) -> Told | None:
    """HeldLease.settlement."""
    ready = tuple(position for position, book in enumerate(held.books, 1) if book in _SETTLEABLE)
    ended = sum(book not in (UNSTARTED, RUNNING) for book in held.books)
    ends = ended >= held.kept and (not held.is_going_back or "ends-before-tail-is-back" in defects)
    return Told(held.lease, ready, ends, False) if ready or ends else None


def _outcomes(held: Held, told: Told) -> tuple[str, ...]:
    return tuple(held.books[position - 1] for position in told.positions)


def _hear(state: State, index: int, who: str, defects: Defects) -> Iterator[Step]:
    """The reply, and what is looked up if it said less than it should; or it is lost, and all is told again."""
    worker = state.workers[index]
    trip = worker.trip
    assert trip is not None
    after, offence, losses = list(worker.held), "", []
    for told in trip.told:
        at = next(place for place, held in enumerate(after) if held.lease == told.lease)
        held = after[at]
        is_own = statements.find_own(state, told.lease, held.cells, told.positions)
        if not told.is_complete and not is_own and "no-look-up" not in defects:
            held = held._replace(is_lost=True)
            losses.append(told.lease)
        elif not is_own:
            offence = "a settle that was acknowledged has no row"
        books = tuple(RECORDED if place in told.positions else book for place, book in enumerate(held.books, 1))
        after[at] = held._replace(books=books)
    ending = [told.lease for told in trip.told if told.ends]
    after = [held for held in after if held.lease not in ending]
    if trip.claim:
        after.append(Held(trip.claim, trip.cells, (UNSTARTED,) * len(trip.cells), kept=len(trip.cells)))
    heard = _with_worker(state, index, worker._replace(held=tuple(after), trip=None))
    if offence:
        heard = heard._replace(offence=offence)
    if trip.claim and trip.seen <= heard.floor:
        last = max(place for cell in trip.cells for place in [_place(cell)])
        heard = heard._replace(floor=max(heard.floor, last))
    told_losses = f", and that lease {_numbers(losses)} is gone" if losses else ""
    yield f"{who} hears the reply{told_losses}", False, heard
    if state.budgets.replies:
        lost = (*worker.lost_claims, trip.claim) if trip.claim else worker.lost_claims
        deaf = _with_worker(with_fewer(state, "replies"), index, worker._replace(trip=None, lost_claims=lost))
        yield f"{who}: the reply is lost", True, deaf


def _place(cell: Cell) -> int:
    return place_of(cell.job, later=cell.failures > 0)


# -- the clerk: handing back


def _give_back(state: State, index: int, who: str, config: Configuration, defects: Defects) -> Iterator[Step]:
    worker = state.workers[index]
    yield from _give_back_claims(state, index, who, defects)
    for held in worker.held:
        shown = worker.run is not None and worker.run.lease == held.lease and not worker.run.is_checked
        if held.started < held.kept and not held.is_going_back:
            has_reason = held.is_refused or held.line is not None or (config.lines and worker.run is not None)
            if has_reason and not shown:
                yield (
                    f"{who} takes back what it has not started of lease {held.lease}",
                    False,
                    _keep(state, index, held),
                )
        elif held.is_going_back:
            yield from _release(state, index, who, held, defects)


def _keep(state: State, index: int, held: Held) -> State:
    floor = state.floor
    for cell in held.cells[held.started : held.kept]:
        floor = statements.lowered(floor, place_of(cell.job))
    kept = held._replace(kept=held.started, is_going_back=True)
    return _hold(state._replace(floor=floor), index, kept, state.workers[index].run)


def _release(state: State, index: int, who: str, held: Held, defects: Defects) -> Iterator[Step]:
    if statements.is_locked(state, held.lease):
        return
    after, places = statements.release(state, held.lease, held.kept + 1, defects)
    worker = after.workers[index]
    if state.budgets.replies and after is not state:
        yield f"{who} releases the tail of lease {held.lease}; the reply is lost", True, with_fewer(after, "replies")
    for place in places:
        after = after._replace(floor=statements.lowered(after.floor, place))
    back = held._replace(is_going_back=False, is_refused=False, line=None)
    if held.kept:
        after = _hold(after, index, back, worker.run)
    else:
        remaining = tuple(other for other in worker.held if other.lease != held.lease)
        after = _with_worker(after, index, worker._replace(held=remaining))
    yield f"{who} releases the tail of lease {held.lease}", False, after


def _give_back_claims(state: State, index: int, who: str, defects: Defects) -> Iterator[Step]:
    """A claim without an answer is released by its lease; forgotten when it was, or after some seconds."""
    worker = state.workers[index]
    for number in worker.lost_claims:
        if statements.is_locked(state, number):
            continue
        after, places = statements.release(state, number, 1, defects)
        for place in places:
            after = after._replace(floor=statements.lowered(after.floor, place))
        rest = tuple(other for other in worker.lost_claims if other != number)
        said = "releases" if lease_of(state, number) is not None else "gives up"
        yield f"{who} {said} its claim {number}", False, _with_worker(after, index, worker._replace(lost_claims=rest))


# -- a worker among the others


def _with_worker(state: State, index: int, worker: Worker) -> State:
    return state._replace(workers=put(state.workers, index, worker))


def _with_job(state: State, index: int, job: Job) -> State:
    return state._replace(jobs=put(state.jobs, index, job))


def _held(worker: Worker, number: int) -> Held:
    return next(held for held in worker.held if held.lease == number)


def _hold(state: State, index: int, changed: Held, run: Run | None) -> State:
    worker = state.workers[index]
    held = tuple(changed if held.lease == changed.lease else held for held in worker.held)
    return _with_worker(state, index, worker._replace(held=held, run=run))


def _name(held: Held, position: int) -> str:
    cell = held.cells[position - 1]
    return f"job {cell.job} (execution {cell.execution}, lease {held.lease})"


def _names(held: Held, positions: Iterable[int]) -> str:
    return ", ".join(_name(held, position) for position in positions) or f"nothing more of lease {held.lease}"


def _jobs(jobs: Iterable[int]) -> str:
    return "job " + ", ".join(map(str, jobs))


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
