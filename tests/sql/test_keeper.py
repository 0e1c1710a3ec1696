"""The keeper of `jobs run`: what it owes a lease comes before what it owes whoever looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg

from pgworker import App
from pgworker.app.queue import PostgresQueue
from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from pgworker.worker.keeper import Keeper
from tests.process.pool import eventually
from tests.sql.actors import ask, enqueue

app = App()


@app.task(name="t")
def task() -> None: ...


def test_a_lock_on_the_heartbeats_does_not_keep_a_lease_from_being_renewed(
    dsn: str, connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    connection, other = connect(), connect()
    enqueue(connection)
    lanes = Lanes.of(["default"])
    board = Board(1, len(lanes))
    [row] = board.rows
    row.reset(uuid4(), time.monotonic_ns())
    queue = PostgresQueue(lambda: connection, row=row, floors=board.floors, lanes=lanes, tasks=app.tasks, lease_ttl=60)
    keeper = Keeper(dsn, row, {})
    keeper.begin()
    [claimed] = queue.claim(1)
    expires = "select expires_at from pgworker.job_leases"
    before = ask(connection, expires)
    with other.transaction():
        other.execute("lock table pgworker.worker_heartbeats in access exclusive mode")
        keeper.keep(claimed)
        eventually(lambda: ask(connection, expires) > before, "the lease is renewed")
    keeper.end("it has ended")
