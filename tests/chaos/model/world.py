"""What happens to pgworker: enqueues commit, somebody cancels, time passes; faults, as often as the budgets allow."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.model import statements
from tests.chaos.model.monitors import is_renewed
from tests.chaos.model.state import (
    FAILED,
    RECORDED,
    Canceller,
    Configuration,
    Expired,
    Flight,
    Held,
    Monitor,
    State,
    Waiting,
    lease_of,
    place_of,
    put,
    row_of,
    with_fewer,
)
from tests.chaos.model.statements import Defects
from tests.chaos.model.workers import Step, commit

_ROUNDS = 3


def steps(state: State, config: Configuration, defects: Defects) -> Iterator[Step]:
    yield from _producers(state)
    yield from _sweep(state, defects)
    yield from _expire(state, defects)
    yield from _flight(state, config, defects)
    yield from _cancel(state, defects)
    yield from _crash(state)
    yield from _stop(state)


def _producers(state: State) -> Iterator[Step]:
    for index, job in enumerate(state.jobs):
        if not job.is_stored:
            stored = job._replace(is_stored=True, waiting=Waiting(1, 0, place_of(index)))
            yield f"the enqueue of job {index} commits", False, state._replace(jobs=put(state.jobs, index, stored))


def _sweep(state: State, defects: Defects) -> Iterator[Step]:
    """find_below_floor.sql: what claims have passed by."""
    places = [job.waiting.place for job in state.jobs if job.waiting is not None and job.waiting.place < state.floor]
    if places and "no-sweep" not in defects:
        yield "a sweep lowers the floor", False, state._replace(floor=min(places))


def _expire(state: State, defects: Defects) -> Iterator[Step]:
    """Time passes. That a reply takes longer than a TTL counts as an outage."""
    for lease in state.leases:
        if lease.expired is not None or is_renewed(state, lease, defects):
            continue
        after = statements.with_lease(state, lease._replace(expired=Expired(by_outage=False)))
        if any(worker.trip is not None and worker.trip.claim == lease.number for worker in state.workers):
            if state.budgets.outages:
                after = with_fewer(after, "outages")
                yield f"lease {lease.number} expires while its worker waits for the reply", True, after
        else:
            yield f"lease {lease.number} expires", False, after
    if state.budgets.outages:
        leases = tuple(lease._replace(expired=lease.expired or Expired(by_outage=True)) for lease in state.leases)
        unsteady = tuple(
            monitor._replace(is_steady="steady-at-once" in defects, hand=None) for monitor in state.monitors
        )
        unlocked = tuple(lease._replace(lock="" if lease.lock != "T" else "T") for lease in leases)
        after = with_fewer(state, "outages")._replace(leases=unlocked, monitors=unsteady)
        yield "the database is away for longer than a TTL", True, after


# -- transactions that go on by themselves


def _flight(state: State, config: Configuration, defects: Defects) -> Iterator[Step]:
    flight = state.flight
    if flight is None:
        return
    committed, _, _ = commit(state._replace(flight=None), flight, config, defects)
    aborted = _unlock(state._replace(flight=None), flight)
    if not flight.own:
        yield "the transaction that went on commits", False, committed
        yield "the transaction that went on is rolled back", False, aborted
        return
    yield "the handler's own transaction commits", False, _own_ended(committed, flight, RECORDED)
    if state.budgets.replies:
        rolled_back = _own_ended(with_fewer(aborted, "replies"), flight, FAILED)
        yield "the handler's own transaction loses its connection, and is rolled back", True, rolled_back


def _unlock(state: State, flight: Flight) -> State:
    for told in flight.told:
        lease = lease_of(state, told.lease)
        if lease is not None and lease.lock == "T":
            state = statements.with_lease(state, lease._replace(lock=""))
    return state


def _own_ended(state: State, flight: Flight, book: str) -> State:
    """The worker hears of it, or finds out; should it still live."""
    worker = state.workers[flight.worker]
    if worker.incarnation != flight.incarnation or not worker.is_alive:
        return state
    [told] = flight.told
    [position] = told.positions
    held = tuple(
        one._replace(books=put(one.books, position - 1, book)) if one.lease == told.lease else one
        for one in worker.held
    )
    return state._replace(workers=put(state.workers, flight.worker, worker._replace(held=held, run=None)))


# -- somebody cancels a job


def _cancel(state: State, defects: Defects) -> Iterator[Step]:
    """cancel_job: is it waiting, then is it running, each look with a snapshot of its own; three rounds."""
    asked = state.canceller
    if asked is None:
        if state.budgets.cancels:
            for index, job in enumerate(state.jobs):
                if job.is_stored:
                    began = with_fewer(state, "cancels")._replace(canceller=Canceller(index, "waiting", 1))
                    yield f"somebody cancels job {index}", True, began
        return
    job = state.jobs[asked.job]
    if asked.step == "waiting":
        if state.flight is not None and asked.job in state.flight.jobs:
            return  # it waits for that lock
        if job.waiting is not None:
            done = statements.cancel_waiting(state, asked.job)._replace(canceller=None)
            yield "the cancel finds it waiting, and ends it", False, done
        else:
            following = state._replace(canceller=asked._replace(step="running"))
            yield "the cancel does not find it waiting", False, following
    elif asked.step == "running":
        yield _look_into_leases(state, asked, defects)
    elif not statements.is_locked(state, asked.lease):
        marked = statements.mark(state, asked, defects)
        if marked is None:
            yield _next_round(state, asked)
        else:
            yield f"the cancel marks it in lease {asked.lease}", False, marked._replace(canceller=None)


def _look_into_leases(state: State, asked: Canceller, defects: Defects) -> Step:
    """Of two leases, where a retry runs beside others of its first batch, the one whose execution has no row counts."""
    found = [
        lease.number
        for lease in state.leases
        for cell in lease.cells
        if cell.job == asked.job and row_of(state.jobs[asked.job], cell.execution) is None
    ]
    if not found:
        return _next_round(state, asked)
    locking = state._replace(canceller=asked._replace(step="marking", lease=found[0]))
    return f"the cancel finds it in lease {found[0]}", False, locking


def _next_round(state: State, asked: Canceller) -> Step:
    if asked.round == _ROUNDS:
        return "the cancel gives up: too late", False, state._replace(canceller=None)
    following = Canceller(asked.job, "waiting", asked.round + 1)
    return "the cancel does not find it running", False, state._replace(canceller=following)


# -- processes


def _crash(state: State) -> Iterator[Step]:
    if state.budgets.crashes:
        for slot, worker in enumerate(state.workers):
            if worker.is_alive and not state.is_stopped:
                yield f"worker {slot} crashes", True, _crashed(state, slot)
    if state.budgets.monitors and state.monitors[0].is_alive:
        ours = state.monitors[0]
        after = _silence(with_fewer(state, "monitors"))
        if ours.hand is not None and ours.hand.step == "taken":
            lease = lease_of(after, ours.hand.lease)
            assert lease is not None
            after = statements.with_lease(after, lease._replace(lock=""))
        after = after._replace(monitors=put(after.monitors, 0, Monitor("A", is_alive=False, is_steady=False)))
        yield "monitor A crashes", True, after
    if not state.monitors[0].is_alive:
        again = Monitor("A", is_steady=False)
        yield "monitor A is forked anew", False, state._replace(monitors=put(state.monitors, 0, again))


def _crashed(state: State, slot: int) -> State:
    state = with_fewer(state, "crashes")
    worker = state.workers[slot]
    run = worker.run
    if run is not None and run.is_checked:
        held: Held = next(held for held in worker.held if held.lease == run.lease)
        cell = held.cells[run.position - 1]
        job = state.jobs[cell.job]
        crashed = job._replace(crashed=(*job.crashed, cell.execution))
        state = state._replace(jobs=put(state.jobs, cell.job, crashed))
    board = worker._replace(is_alive=False, trip=None, lost_claims=())
    return state._replace(workers=put(state.workers, slot, board))


def _stop(state: State) -> Iterator[Step]:
    """Of the whole pool but not of the other one; what it holds expires meanwhile."""
    if state.budgets.stops and not state.is_stopped:
        yield "the pool is stopped", True, _silence(with_fewer(state, "stops"))._replace(is_stopped=True)
    if state.is_stopped:
        ours = state.monitors[0]._replace(is_steady=False)
        resumed = state._replace(is_stopped=False, monitors=put(state.monitors, 0, ours))
        yield "the pool goes on", False, resumed


def _silence(state: State) -> State:
    """From now on it is not for an outage alone that leases are not renewed."""
    silent = tuple(
        lease._replace(expired=None if lease.expired is None else Expired(by_outage=False)) for lease in state.leases
    )
    return state._replace(leases=silent)
