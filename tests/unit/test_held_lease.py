from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pgworker.app.queue.leases import HeldLease
from pgworker.lifecycle.settle import Ended, Settlement

LEASE = UUID(int=1)


def ended(position: int) -> Ended:
    return Ended(UUID(int=position), 1, 0, 0)


def positions(settlement: Settlement | None) -> list[int] | None:
    """Those that are recorded; each stands where its lease has it."""
    if settlement is None:
        return None
    found = {settlement.first + place: run for place, run in enumerate(settlement.ended) if run is not None}
    assert all(run.job_id.int == position for position, run in found.items())
    return list(found)


def test_what_has_ended_is_settled_in_one_stretch_and_the_last_one_ends_the_lease() -> None:
    lease = HeldLease(LEASE, 0, count=3)
    lease.end(1, ended(1))
    lease.end(2, ended(2))
    assert lease.settlement() == Settlement(LEASE, 1, [ended(1), ended(2)], ends_lease=False)
    lease.mark_settled()
    assert not lease.is_ended
    lease.end(3, ended(3))
    assert lease.settlement() == Settlement(LEASE, 3, [ended(3)], ends_lease=True)
    lease.mark_settled()
    assert lease.is_ended


def test_what_still_runs_and_what_has_settled_itself_leave_gaps() -> None:
    lease = HeldLease(LEASE, 0, count=9)
    lease.end(6, ended(6))
    lease.end(2, ended(2))
    lease.end(4, None)
    assert lease.settlement() == Settlement(LEASE, 2, [ended(2), None, None, None, ended(6)], ends_lease=False)


def test_a_lease_whose_last_position_settled_itself_ends_with_nothing_to_record() -> None:
    lease = HeldLease(LEASE, 0, count=1)
    lease.end(1, None)
    assert lease.settlement() == Settlement(LEASE, 1, [], ends_lease=True)


def test_a_lease_with_nothing_new_has_nothing_to_settle() -> None:
    lease = HeldLease(LEASE, 0, count=2)
    assert (lease.settlement(), lease.has_update) == (None, False)


def test_a_lease_does_not_end_while_its_tail_is_going_back() -> None:
    lease = HeldLease(LEASE, 0, count=3)
    lease.end(1, ended(1))
    lease.keep(1)
    assert lease.settlement() == Settlement(LEASE, 1, [ended(1)], ends_lease=False)
    lease.mark_settled()
    assert not lease.is_ended
    assert (lease.settlement(), lease.has_update) == (None, False)
    lease.mark_gone_back()
    assert not lease.is_ended
    assert lease.settlement() == Settlement(LEASE, 1, [], ends_lease=True)  # its row is still there


def test_a_lease_that_goes_back_whole_has_ended_with_that() -> None:
    lease = HeldLease(LEASE, 0, count=3)
    lease.keep(0)
    lease.mark_gone_back()
    assert lease.is_ended


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_every_position_is_settled_once_in_whatever_order_results_arrive(own: list[bool], data: st.DataObject) -> None:
    """`own[i]`: position i + 1 has settled itself."""
    lease = HeldLease(LEASE, 0, count=len(own))
    order = data.draw(st.permutations(range(1, len(own) + 1)))
    recorded: list[int] = []
    ends = 0
    while not lease.is_ended:
        more = data.draw(st.integers(1, len(order)))
        for position in order[:more]:
            lease.end(position, None if own[position - 1] else ended(position))
        order = order[more:]
        settlement = lease.settlement()
        recorded += positions(settlement) or []
        ends += settlement is not None and settlement.ends_lease
        lease.mark_settled()
    assert sorted(recorded) == [index + 1 for index, alone in enumerate(own) if not alone]
    assert ends == 1
