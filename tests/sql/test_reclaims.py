"""What a monitor does when one of the leases that it takes back is damaged."""

from __future__ import annotations

from uuid import UUID

import pytest

from pgworker.linux.board import Board
from pgworker.monitor.reclaims import Reclaims
from pgworker.observe.metrics import PoolMetrics, PoolState
from tests.sql.actors import POOL, Connect, Worker, enqueue, leases, waiting

REFUSAL = """
    create function refuse() returns trigger language plpgsql as $$ begin raise 'refused, as planted'; end $$;
    create trigger refuse before insert on pgworker.job_queue
    for each row when (new.job_id = '{job_id}') execute function refuse()
"""


def test_a_lease_that_cannot_be_taken_back_keeps_nobody_from_the_others_and_is_tried_again(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    db, worker = connect(), Worker(connect())
    ids = enqueue(db, 6)
    before, damaged, behind = (worker.claim(2) for _ in range(3))
    worker.die()
    db.execute(REFUSAL.format(job_id=damaged.ids[1]).encode())
    reclaims = Reclaims(Board(1, 1), POOL, 60, 10, PoolMetrics("1", PoolState))

    def reclaimed() -> set[UUID]:
        return {job.job_id for job in reclaims.reclaim(db, lambda: None, None)}

    for looks, others in enumerate([{*before.ids, *behind.ids}, set()], start=1):
        assert reclaimed() == others
        assert leases(db) == {damaged.lease_id: damaged.ids}
        told = [record for record in caplog.records if "a lease can't be taken back, the others are" in record.message]
        assert len(told) == looks
    db.execute("drop trigger refuse on pgworker.job_queue")
    assert reclaimed() == set(damaged.ids)
    assert leases(db) == {}
    assert [job for job, _, _ in waiting(db)] == ids
