"""What monitors do: record deaths, reclaim, renew, draw lines. See pgworker/monitor/reclaims.py and renewals.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.chaos.model import statements
from tests.chaos.model.state import (
    CRASHED,
    LOST,
    UNSTARTED,
    Configuration,
    Hand,
    Held,
    Lease,
    Line,
    Monitor,
    State,
    Witness,
    Worker,
    lease_of,
    put,
    row_of,
    with_fewer,
)
from tests.chaos.model.statements import Defects
from tests.chaos.model.workers import Step


def steps(state: State, config: Configuration, defects: Defects) -> Iterator[Step]:
    for index, monitor in enumerate(state.monitors):
        is_ours = monitor.name == "A"
        if not monitor.is_alive or (is_ours and state.is_stopped):
            continue
        if not monitor.is_steady and _all_have_renewed(state):
            steady = _with(state, index, monitor._replace(is_steady=True))
            yield f"monitor {monitor.name} has beaten for a whole TTL", False, steady
        yield from _reclaim(state, index, config, defects)
        if is_ours:
            yield from _record_deaths(state, index)
            yield from _renew(state, defects)
            if config.lines:
                yield from _draw_line(state, index, defects)


# -- deaths


def _record_deaths(state: State, index: int) -> Iterator[Step]:
    """What the board shows is kept as a witness; after the acknowledgement the row is another worker's."""
    monitor = state.monitors[index]
    for slot, worker in enumerate(state.workers):
        if worker.is_alive:
            continue
        if any(witness.incarnation == worker.incarnation for witness in monitor.witnesses):
            following = Worker(state.next_incarnation)
            after = state._replace(
                workers=put(state.workers, slot, following), next_incarnation=state.next_incarnation + 1
            )
            yield f"monitor A acknowledges; worker {slot} is forked anew", False, after
            continue
        witness = Witness(worker.incarnation, tuple(_entry(worker, held) for held in worker.held))
        after = _with(state, index, monitor._replace(witnesses=(*monitor.witnesses, witness)))
        ended = tuple(sorted({*state.ended, worker.incarnation}))
        yield f"monitor A records the death of worker {slot}", False, after._replace(ended=ended)


def _entry(worker: Worker, held: Held) -> tuple[int, int, int]:
    run = worker.run
    running = run.position if run is not None and run.lease == held.lease and run.is_checked else 0
    return held.lease, held.started, running


# -- reclaims


def _reclaim(state: State, index: int, config: Configuration, defects: Defects) -> Iterator[Step]:
    """Find, take, send on: a look, then two statements of one transaction."""
    monitor = state.monitors[index]
    hand = monitor.hand
    who = f"monitor {monitor.name}"
    if hand is None:
        for lease in state.leases:
            found = _look(state, monitor, lease, defects)
            if found is not None:
                yield f"{who} finds lease {lease.number}", False, _with(state, index, monitor._replace(hand=found))
    elif hand.step == "found":
        yield _take(state, index, hand, who, defects)
    else:
        taken = lease_of(state, hand.lease)
        assert taken is not None
        verdicts, assumed_running, witness = _findings(state, monitor, taken, defects)
        after, places = statements.send_on(state, hand, verdicts, assumed_running, config.attempts, defects)
        if witness is not None:
            after = _check_charges(after, taken)
        if monitor.name == "A":
            for place in places:
                after = after._replace(floor=statements.lowered(after.floor, place))
        yield f"{who} sends on the jobs of lease {hand.lease}", False, _with(after, index, monitor._replace(hand=None))


def _look(state: State, monitor: Monitor, lease: Lease, defects: Defects) -> Hand | None:
    """find_reclaimable_leases.sql, and what the monitor asks before it goes on."""
    has_ended = lease.owner in state.ended
    if not has_ended:
        if lease.expired is None or not monitor.is_steady:
            return None
        if monitor.name == "A" and (_is_shown(state, lease) or _is_to_be_recorded(state, lease)):
            return None
        if monitor.name == "B" and not state.is_stopped and not lease.expired.by_outage and state.monitors[0].is_alive:
            return None  # its pool beats, and looks after its own
    snapshot = frozenset[tuple[int, int]]()
    if "one-snapshot" in defects:
        settled = [cell for cell in lease.cells if row_of(state.jobs[cell.job], cell.execution) is not None]
        snapshot = frozenset((cell.job, cell.execution) for cell in settled)
    return Hand(lease.number, "found", not has_ended, snapshot)


def _take(state: State, index: int, hand: Hand, who: str, defects: Defects) -> Step:
    """take_lease.sql: what was expired is asked again, under the lock; what is locked is left."""
    monitor = state.monitors[index]
    lease = lease_of(state, hand.lease)
    if lease is None or lease.lock or (hand.only_expired and (lease.expired is None or not monitor.is_steady)):
        return f"{who} leaves lease {hand.lease}", False, _with(state, index, monitor._replace(hand=None))
    if hand.only_expired and lease.expired is not None and lease.expired.by_outage and _is_ours_to_settle(state, lease):
        state = state._replace(offence="what a living worker is about to settle after an outage was taken")
    taken = statements.with_lease(state, lease._replace(lock=monitor.name))
    return (
        f"{who} deletes lease {hand.lease}",
        False,
        _with(taken, index, monitor._replace(hand=hand._replace(step="taken"))),
    )


def _findings(
    state: State, monitor: Monitor, lease: Lease, defects: Defects
) -> tuple[Sequence[str | None], int, Witness | None]:
    """What is known of each position, by the board if it was ours; else its first unfinished one is taken to run."""
    nothing: list[str | None] = [None] * len(lease.cells)
    witness = next((witness for witness in monitor.witnesses if witness.incarnation == lease.owner), None)
    if witness is None:
        lives = any(worker.is_alive and worker.incarnation == lease.owner for worker in state.workers)
        return nothing, 0 if monitor.name == "A" and lives else 1, None
    for number, started, running in witness.leases:
        if number == lease.number:
            for position in range(1, min(started, len(nothing)) + 1):
                is_charged = position == running or "neighbours-charged" in defects
                nothing[position - 1] = CRASHED if is_charged and "crash-not-charged" not in defects else LOST
    return nothing, 0, witness


def _check_charges(state: State, lease: Lease) -> State:
    """With a witness, a crash is charged to what ran, and to nothing else."""
    for cell in lease.cells:
        job = state.jobs[cell.job]
        row = row_of(job, cell.execution)
        outcome = None if row is None or row.settled or cell.is_marked else row.outcome
        ran = cell.execution in job.crashed
        if outcome == CRASHED and not ran:
            state = state._replace(offence="a crash was charged to a job that did not run")
        if ran and (row is None or outcome == LOST):
            state = state._replace(offence="a job ran when its worker crashed, and was not charged")
    return state


# -- renewals


def _renew(state: State, defects: Defects) -> Iterator[Step]:
    """Leases that living workers show; those that are gone are flagged as lost."""
    for slot, worker in enumerate(state.workers):
        if not worker.is_alive:
            continue
        for place, held in enumerate(worker.held):
            if held.is_lost:
                continue
            lease = lease_of(state, held.lease)
            if lease is not None and lease.expired is not None and not lease.lock:
                renewed = statements.with_lease(state, lease._replace(expired=None))
                yield f"monitor A renews lease {held.lease}", False, renewed
            if lease is None and (held.started < held.kept or worker.run is not None):
                changed = worker._replace(held=put(worker.held, place, held._replace(is_lost=True)))
                after = state._replace(workers=put(state.workers, slot, changed))
                yield f"monitor A tells worker {slot} that lease {held.lease} is lost", False, after


def is_renewed(state: State, lease: Lease, defects: Defects) -> bool:
    """Whether somebody lives who keeps this lease from expiring."""
    if state.is_stopped or not state.monitors[0].is_alive:
        return False
    if "renews-what-is-not-shown" in defects:
        return any(worker.is_alive and worker.incarnation == lease.owner for worker in state.workers)
    return _is_shown(state, lease)


def _is_shown(state: State, lease: Lease) -> bool:
    return any(
        held.lease == lease.number and not held.is_lost
        for worker in state.workers
        if worker.is_alive
        for held in worker.held
    )


def _is_to_be_recorded(state: State, lease: Lease) -> bool:
    """Its worker has died: that is recorded first, with what the board shows."""
    return any(not worker.is_alive and worker.incarnation == lease.owner for worker in state.workers)


def _is_ours_to_settle(state: State, lease: Lease) -> bool:
    return not state.is_stopped and state.monitors[0].is_alive and _is_shown(state, lease)


def _all_have_renewed(state: State) -> bool:
    """After a TTL without an outage, whoever lives has heard what he claimed, and renewed what he shows."""
    if state.is_stopped or not state.monitors[0].is_alive:
        return True
    claiming = [worker.trip.claim for worker in state.workers if worker.is_alive and worker.trip is not None]
    return not any(
        lease.expired is not None and lease.expired.by_outage and (lease.number in claiming or _is_shown(state, lease))
        for lease in state.leases
    )


# -- lines


def _draw_line(state: State, index: int, defects: Defects) -> Iterator[Step]:
    """A line first, then a look whether the runner was quicker; Dekker's algorithm."""
    monitor = state.monitors[index]
    line = monitor.line
    if line is None:
        for slot, worker in enumerate(state.workers):
            if not worker.is_alive or worker.run is None:
                continue
            for held in worker.held:
                if held.kept > held.started and not held.is_lost and held.line is None:
                    drawn = _with(state, index, monitor._replace(line=Line(slot, held.lease, held.started)))
                    if "releases-without-line" not in defects:
                        drawn = _show_line(drawn, slot, held, held.started)
                    yield f"monitor A draws a line in lease {held.lease} after position {held.started}", False, drawn
        return
    yield from _look_at_line(state, index, line, defects)


def _look_at_line(state: State, index: int, line: Line, defects: Defects) -> Iterator[Step]:
    worker = state.workers[line.worker]
    held = next((held for held in worker.held if held.lease == line.lease), None)
    done = _with(state, index, state.monitors[index]._replace(line=None))
    if held is None or not worker.is_alive:
        yield f"monitor A forgets its line in lease {line.lease}", False, done
        return
    erased = _show_line(done, line.worker, held, None)
    was_quicker = held.started > line.started and "releases-without-line" not in defects
    if was_quicker or statements.is_locked(state, line.lease):
        yield f"monitor A erases its line in lease {line.lease}", False, erased
        return
    after, places = statements.release(done, line.lease, line.started + 1, defects)
    if any(book != UNSTARTED for book in held.books[line.started :]) and places:
        after = after._replace(offence="a job was released that its worker had started")
    said = f"monitor A releases lease {line.lease} behind position {line.started}"
    if state.budgets.replies and places:
        deaf = with_fewer(after, "replies")
        if "erases-line-in-doubt" in defects:
            deaf = _show_line(deaf, line.worker, held, None)
        yield f"{said}; the reply is lost", True, deaf
    for place in places:
        after = after._replace(floor=statements.lowered(after.floor, place))
    yield said, False, after


def _show_line(state: State, slot: int, held: Held, line: int | None) -> State:
    worker = state.workers[slot]
    shown = tuple(other._replace(line=line) if other.lease == held.lease else other for other in worker.held)
    return state._replace(workers=put(state.workers, slot, worker._replace(held=shown)))


def _with(state: State, index: int, monitor: Monitor) -> State:
    return state._replace(monitors=put(state.monitors, index, monitor))
