"""A rush of notifications ends the telling for a while: by a clock of the test's own, with a real listener."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from select import select
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection

from pgworker.linux.board import Board
from pgworker.monitor.wakeups import Wakeups
from tests.sql.actors import Connect, ask

RUSH = 20  # notifications
_HELD = """
    select count(*) > 0 from pg_locks
    where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
"""


@dataclass
class Sleeper:
    """A monitor's wake-ups for one idle worker; the tests say what time it is."""

    wakeups: Wakeups
    db: Connection[Any]
    now: float

    def is_told(self, later: float) -> bool:
        """Whether enqueuers see that somebody sleeps, so many seconds later."""
        self.now += later
        self.wakeups.tick(self.now)
        return bool(ask(self.db, _HELD)[0])

    def notify(self, count: int) -> None:
        """So many jobs are told of, which the monitor hears."""
        with self.db.transaction():
            for jobs in range(1, count + 1):  # equal ones of one transaction come once
                ask(self.db, "select pg_notify('pgworker', %s)", f"default={jobs}")
        assert self.wakeups.listener is not None
        assert select([self.wakeups.listener], [], [], 10.0)[0]
        self.wakeups.read()


@pytest.fixture
def sleeper(connect: Connect, dsn: str) -> Iterator[Sleeper]:
    board = Board(1, 1)
    [row] = board.rows
    row.reset(uuid4(), time.monotonic_ns())
    row.pid = os.getpid()
    row.is_idle = True
    reads, writes = os.pipe()
    wakeups = Wakeups(dsn, ["default"], board, [writes], listens=True, patience=10.0, between=lambda: None)
    try:
        yield Sleeper(wakeups, connect(), 1000.0)
    finally:
        wakeups.close()
        os.close(reads)
        os.close(writes)


def test_a_few_notifications_are_no_rush(sleeper: Sleeper) -> None:
    assert sleeper.is_told(0.0)
    sleeper.notify(RUSH - 1)
    assert sleeper.is_told(0.05)


def test_one_burst_is_one_rush_however_long_it_is(sleeper: Sleeper) -> None:
    assert sleeper.is_told(0.0)
    for _ in range(4):
        sleeper.notify(RUSH)
        assert not sleeper.is_told(0.05)
    assert not sleeper.is_told(0.9)
    assert sleeper.is_told(0.2)


def test_a_rush_that_goes_on_lasts_longer_each_time_and_another_one_begins_anew(sleeper: Sleeper) -> None:
    assert sleeper.is_told(0.0)
    for seconds in (1.0, 2.0, 4.0, 8.0, 8.0):
        sleeper.notify(RUSH)
        assert not sleeper.is_told(0.05)
        assert not sleeper.is_told(seconds - 0.1)
        assert sleeper.is_told(0.2)
    assert sleeper.is_told(1.0)
    sleeper.notify(RUSH)
    assert not sleeper.is_told(0.05)
    assert sleeper.is_told(1.1)
