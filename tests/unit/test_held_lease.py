from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pgworker.lifecycle.settle import Ended, Settlement
from pgworker.worker.lease import HeldLease

LEASE = UUID(int=1)


def ended(position: int) -> Ended:
    return Ended(UUID(int=position), 1, 0, 0)


def parts(settlements: list[Settlement]) -> list[tuple[int, int, bool]]:
    return [(part.first, part.last, part.ends_lease) for part in settlements]


def test_what_has_ended_is_settled_in_one_stretch_and_the_last_one_ends_the_lease() -> None:
    lease = HeldLease(LEASE, 0, count=3)
    lease.ready = [ended(1), ended(2)]
    assert parts(lease.settlements()) == [(1, 2, False)]
    lease.mark_settled()
    assert not lease.is_ended
    lease.ready = [ended(3)]
    assert parts(lease.settlements()) == [(3, 3, True)]
    lease.mark_settled()
    assert lease.is_ended


def test_a_position_that_its_own_transaction_has_settled_is_left_out() -> None:
    lease = HeldLease(LEASE, 0, count=4)
    lease.ready = [ended(1), None, ended(3)]
    assert parts(lease.settlements()) == [(1, 1, False), (3, 3, False)]


def test_a_lease_whose_last_position_settled_itself_ends_with_nothing_to_record() -> None:
    lease = HeldLease(LEASE, 0, count=2)
    lease.ready = [ended(1), None]
    assert parts(lease.settlements()) == [(1, 1, False), (3, 2, True)]


def test_a_lease_with_nothing_new_has_nothing_to_settle() -> None:
    assert HeldLease(LEASE, 0, count=2).settlements() == []


def test_a_lease_does_not_end_while_its_tail_is_going_back() -> None:
    lease = HeldLease(LEASE, 0, count=3)
    lease.ready = [ended(1)]
    lease.keep(1)
    assert parts(lease.settlements()) == [(1, 1, False)]
    lease.mark_settled()
    assert not lease.is_ended
    assert lease.settlements() == []
    lease.mark_gone_back()
    assert not lease.is_ended
    assert parts(lease.settlements()) == [(2, 1, True)]  # its row is still there, with one settled position


def test_a_lease_that_goes_back_whole_has_ended_with_that() -> None:
    lease = HeldLease(LEASE, 0, count=3)
    lease.keep(0)
    lease.mark_gone_back()
    assert lease.is_ended


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_every_position_is_settled_once_in_order_however_results_arrive(own: list[bool], data: st.DataObject) -> None:
    """`own[i]`: position i + 1 has settled itself."""
    lease = HeldLease(LEASE, 0, count=len(own))
    recorded: list[int] = []
    ends = 0
    arrived = 0
    while not lease.is_ended:
        more = data.draw(st.integers(1, len(own) - arrived))
        lease.ready += [None if own[index] else ended(index + 1) for index in range(arrived, arrived + more)]
        arrived += more
        for part in lease.settlements():
            assert [run.job_id.int for run in part.ended] == list(range(part.first, part.last + 1))
            recorded += [run.job_id.int for run in part.ended]
            ends += part.ends_lease
        lease.mark_settled()
    assert recorded == [index + 1 for index, alone in enumerate(own) if not alone]
    assert ends == 1
