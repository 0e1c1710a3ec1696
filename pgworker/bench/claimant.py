"""One worker's claims and settles, as its clerk sends them, each with a clock around it."""

from __future__ import annotations

import time
from uuid import uuid4

from psycopg import Connection

from pgworker.app.queue.postgres import PostgresQueue
from pgworker.bench.ground import QUEUE
from pgworker.bench.jobs import app
from pgworker.config.settings import PoolSettings
from pgworker.db.connect import Row, connect
from pgworker.lifecycle.claim import Lanes
from pgworker.linux.board import Board
from pgworker.worker.sweep import Sweeper

_PREPARE = 1  # as a worker's connection does


class Claimant:
    """Claims through the same queue, floors and sweeps as a worker, without running anything."""

    def __init__(self, dsn: str) -> None:
        self._connection: Connection[Row] = connect(
            dsn, application_name="pgworker bench claims", prepare_threshold=_PREPARE
        )
        lanes = Lanes.of([QUEUE])
        board = Board(1, len(lanes))
        [row] = board.rows
        row.reset(uuid4(), time.monotonic_ns())
        self._queue = PostgresQueue(
            lambda: self._connection,
            row=row,
            floors=board.floors,
            lanes=lanes,
            tasks=app.tasks,
            lease_ttl=PoolSettings(workers=1).lease_ttl,
        )
        self._sweeper = Sweeper(board, list(app.tasks), lanes)

    def claim(self, jobs: int) -> tuple[int, float]:
        """Claim up to so many, then settle them in a second trip: how many they were, and the claim's milliseconds."""
        began = time.perf_counter_ns()
        claimed = self._queue.claim(jobs)
        took = (time.perf_counter_ns() - began) / 1e6
        for job in claimed:
            self._queue.succeed(job)
        self._queue.claim(0)
        self._sweeper.sweep(self._connection)
        return len(claimed), took

    def close(self) -> None:
        self._connection.close()
