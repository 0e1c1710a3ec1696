from __future__ import annotations

from uuid import uuid4

import pytest

from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow, Run
from pgworker.model.state import CancelReason


def started(row: BoardRow, slot: int = 0, on_loop: int = 0) -> Run:
    row.start_run(slot, lease=2, position=7, now_ns=100, deadline_ns=200, thread=9, on_loop=on_loop)
    run = row.run(slot)
    assert run is not None
    return run


def test_a_run_is_seen_from_its_start_to_its_end_and_counted_then() -> None:
    row = Board(2, 10).rows[1]
    row.reset(uuid4(), 1)
    run = started(row)
    assert (run.slot, run.lease, run.position, run.since_ns, run.deadline_ns, run.is_async) == (
        0,
        2,
        7,
        100,
        200,
        False,
    )
    row.end_run(0, run.sequence)
    assert row.run(0) is None
    assert row.jobs_done == 1


def test_a_run_that_is_on_trial_shows_it_and_leaves_that_to_nobody_after_it() -> None:
    row = Board(1, 10).rows[0]
    row.reset(uuid4(), 1)
    sequence = row.start_run(0, lease=2, position=7, now_ns=100, deadline_ns=200, thread=9, trial_until_ns=300)
    assert [run.trial_until_ns for run in row.runs()] == [300]
    row.end_run(0, sequence)
    assert started(row).trial_until_ns == 0


def test_the_slots_of_a_worker_are_seen_apart() -> None:
    row, neighbour = Board(2, 10, slots=3).rows
    row.reset(uuid4(), 1)
    neighbour.reset(uuid4(), 1)
    assert [run.slot for run in row.runs()] == []
    runs = [started(row, slot, on_loop=int(slot == 0)) for slot in (0, 2)]
    assert [(run.slot, run.is_async) for run in row.runs()] == [(0, True), (2, False)]
    row.ask_cancel(runs[1], CancelReason.CANCELLED)
    assert [row.cancel_reason(run.slot, run.sequence) for run in runs] == [CancelReason.NONE, CancelReason.CANCELLED]
    row.end_run(0, runs[0].sequence)
    assert row.runs() == (runs[1],)
    row.end_run(2, runs[1].sequence)
    assert (row.jobs_done, neighbour.runs()) == (2, ())


def test_a_cancel_request_reaches_the_run_it_names_and_no_other_and_its_first_reason_stays() -> None:
    row = Board(1, 10).rows[0]
    row.reset(uuid4(), 1)
    first = started(row)
    row.ask_cancel(first, CancelReason.DEADLINE)
    row.ask_cancel(first, CancelReason.SHUTDOWN)
    assert row.cancel_reason(0, first.sequence) is CancelReason.DEADLINE
    row.end_run(0, first.sequence)
    second = started(row)
    assert row.cancel_reason(0, second.sequence) is CancelReason.NONE
    row.ask_cancel(first, CancelReason.SHUTDOWN)  # late: it was meant for the run before
    assert row.cancel_reason(0, second.sequence) is CancelReason.NONE
    row.ask_cancel(second, CancelReason.DEADLINE)
    row.ask_cancel(first, CancelReason.CANCELLED)
    assert row.cancel_reason(0, second.sequence) is CancelReason.DEADLINE


def test_a_lease_is_shown_renewed_lost_and_hidden() -> None:
    row = Board(1, 10).rows[0]
    row.reset(uuid4(), 1)
    lease_id = uuid4()
    index = row.show_lease(lease_id, count=5, sent_ns=10)
    [entry] = row.leases()
    assert (entry.lease_id, entry.count, entry.started, entry.renewed_ns, entry.is_lost) == (lease_id, 5, 0, 10, False)
    row.stamp_renewal(entry, 20)
    row.show_started(index, 3)
    row.mark_lost(entry)
    [entry] = row.leases()
    assert (entry.renewed_ns, entry.started, entry.is_lost) == (20, 3, True)
    row.hide_lease(index)
    assert list(row.leases()) == []


def test_what_is_meant_for_a_lease_does_not_touch_the_one_that_took_its_place() -> None:
    row = Board(1, 10).rows[0]
    row.reset(uuid4(), 1)
    row.hide_lease(row.show_lease(uuid4(), 1, 1))
    index = row.show_lease(uuid4(), 1, 1)
    [entry] = row.leases()
    row.hide_lease(index)
    successor = row.show_lease(uuid4(), 9, 50)
    row.stamp_renewal(entry, 60)
    row.mark_lost(entry)
    row.draw_line(entry, 0)
    assert (row.renewed_ns(successor), row.is_lost(successor), row.line(successor)) == (50, False, None)


def test_runs_of_a_lease_are_not_those_of_the_one_that_took_its_place() -> None:
    row = Board(1, 10).rows[0]
    row.reset(uuid4(), 1)
    index = row.show_lease(uuid4(), 10, 100)
    [settled] = row.leases()
    sequence = row.start_run(0, index, position=7, now_ns=100, deadline_ns=200, thread=9)
    assert [run.sequence for run in row.runs_of(settled)] == [sequence]
    row.end_run(0, sequence)
    row.hide_lease(index)
    assert row.show_lease(uuid4(), 10, 100) == index
    again = row.start_run(0, index, position=7, now_ns=100, deadline_ns=200, thread=9)
    assert row.runs_of(settled) == ()
    assert [run.sequence for entry in row.leases() for run in row.runs_of(entry)] == [again]


def test_a_worker_holds_no_more_leases_than_it_has_places_for() -> None:
    row = Board(1, 10).rows[0]
    row.reset(uuid4(), 1)
    for _ in range(row.leases_limit):
        row.show_lease(uuid4(), 1, 1)
    with pytest.raises(ValueError, match="at most"):
        row.show_lease(uuid4(), 1, 1)


def test_a_new_incarnation_inherits_nothing_of_the_old_one() -> None:
    board = Board(2, 10)
    row, neighbour = board.rows
    neighbour.reset(uuid4(), 5)
    neighbour.show_lease(uuid4(), 1, 1)
    row.reset(uuid4(), 1)
    started(row)
    row.show_lease(uuid4(), 1, 1)
    row.set_ready()
    row.ask_drain()
    worker_id = uuid4()
    row.reset(worker_id, 2)
    assert (row.worker_id, row.forked_ns, row.is_ready, row.is_draining, row.jobs_done) == (
        worker_id,
        2,
        False,
        False,
        0,
    )
    assert row.runs() == ()
    assert list(row.leases()) == []
    assert len(list(neighbour.leases())) == 1


@pytest.mark.parametrize("floor", [(100, 7), (100, 0)])
def test_a_floor_does_not_rise_over_a_job_that_came_back_during_a_claim(floor: tuple[int, int]) -> None:
    """The claim's snapshot doesn't have the job yet, and the floor, below the job, had no need to come down for it."""
    floors = Board(1, 1).floors
    floors.advance(0, seen=(0, 0), claimed=floor)
    floors.lower(0, (150, 1))
    floors.advance(0, seen=floor, claimed=(200, 1))
    (at,), (half,) = floors.read()
    assert (at, half) <= floor
    floors.advance(0, seen=(at, half), claimed=(150, 1))  # one that began after that takes the job, and raises it
    assert floors.read() == ([150], [1])


def test_a_floor_rises_with_claims_unless_somebody_has_lowered_it_meanwhile() -> None:
    floors = Board(1, 3).floors
    floors.advance(1, seen=(0, 0), claimed=(100, 7))
    assert floors.read() == ([0, 100, 0], [0, 7, 0])
    floors.lower(1, (50, 3))
    floors.advance(1, seen=(100, 7), claimed=(200, 1))  # a claim that began before the floor was lowered
    assert floors.read()[0][1] == 50
    floors.advance(1, seen=(50, 3), claimed=(60, 0))
    floors.advance(1, seen=(50, 3), claimed=(55, 0))  # a slower claim of the same moment
    assert floors.read()[0][1] == 60


def test_that_there_is_more_is_heard_once() -> None:
    board = Board(1, 1)
    assert not board.take_more()
    board.tell_of_more()
    board.tell_of_more()
    assert [board.take_more(), board.take_more()] == [True, False]


def test_one_worker_at_a_time_is_told_to_sweep_and_to_log() -> None:
    board = Board(1, 1)
    assert [board.take_sweep(now, 10) for now in (5, 6, 14, 15, 16)] == [True, False, False, True, False]
    assert [board.take_outage_line(now) for now in (1, 2, 1_000_000_001)] == [True, False, True]
    assert [board.take_look(now, 10) for now in (5, 14, 15)] == [True, False, True]
    assert board.take_full_sweep(1, 100)
    board.put_off_full_sweep(50)
    assert [board.take_full_sweep(now, 100) for now in (49, 50)] == [False, True]
