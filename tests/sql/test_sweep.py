"""The look behind the floors, by the sweeper that a worker has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import Connection

from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from pgworker.worker.sweep import Sweeper
from tests.process.pool import eventually
from tests.sql.actors import Connect, ask, enqueue

LANES = Lanes.of(["default"])
SOME_DAY = 2**62
"""Nanoseconds, or microseconds, beyond whatever a clock shows."""

_LOCK = "lock table pgworker.job_queue in access exclusive mode"
_HAS_WAITED = """
    select count(*) from pg_stat_activity where wait_event_type = 'Lock' and now() - query_start > interval '2.1 s'
"""


class Looks:
    """Full ones, whenever the test wants one."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._board = Board(1, len(LANES))
        self._sweeper = Sweeper(self._board, ["t"], LANES)
        for lane in range(len(LANES)):  # only a full look finds what waits
            self._board.floors.advance(lane, (0, 0), (SOME_DAY, 0))

    def look(self) -> bool:
        self._board.take_sweep(SOME_DAY, -SOME_DAY)
        self._board.put_off_full_sweep(0)
        return self._sweeper.sweep(self._connection)


@pytest.fixture
def looks(connect: Connect) -> Looks:
    return Looks(connect())


def test_a_job_behind_the_floor_is_found(looks: Looks, connect: Connect) -> None:
    assert not looks.look()
    enqueue(connect())
    assert looks.look()


def test_a_full_look_that_was_given_up_may_take_longer_the_next_time(looks: Looks, connect: Connect) -> None:
    """Or what makes it slow, such as millions of dead entries, would hide for good what stands behind them."""
    db, slow = connect(), connect()
    enqueue(db)
    with slow.transaction():
        slow.execute(_LOCK)
        assert not looks.look(), "it was given up"
    with ThreadPoolExecutor(1) as another:
        with slow.transaction():
            slow.execute(_LOCK)
            looking = another.submit(looks.look)
            eventually(lambda: ask(db, _HAS_WAITED) == [1], "a look that takes longer than the first one might")
        assert looking.result()
