"""What the pages say of this pool, read from the board when somebody asks. Nothing here waits for the database."""

from __future__ import annotations

import time

from pgworker.linux.board import Board
from pgworker.monitor.activity import Activities
from pgworker.observe.metrics import PoolState, WorkerGauge

STUCK = 15.0
"""Seconds without a tick of the monitor after which /healthz says so."""


class Vitals:
    """Called by the threads that serve the pages."""

    def __init__(self, board: Board, activities: Activities) -> None:
        self._board = board
        self._activities = activities

    def state(self) -> PoolState:
        """For the gauges of /metrics."""
        workers = [
            WorkerGauge(row.index, row.is_ready, row.slots, len(row.runs()), usage.uss_bytes)
            for row in self._board.rows
            if (usage := self._activities.usage(row)) is not None
        ]
        return PoolState(
            workers,
            self._activities.cpu_by_place(),
            self._board.workers_wanted,
            is_paused=self._board.is_paused,
            is_connected=self._board.is_connected,
        )

    def is_healthy(self) -> bool:
        """Whether the monitor goes round its loop."""
        return time.monotonic_ns() - self._board.monitor_beat_ns < STUCK * 1e9

    def is_ready(self) -> bool:
        """Whether the database is there, and a worker that takes jobs."""
        return self._board.is_connected and any(row.takes_jobs for row in self._board.rows)
