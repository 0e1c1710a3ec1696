"""When a start has succeeded: a worker can work, and the monitor, who keeps its leases, has its connection."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pgworker.linux.board import Board
from pgworker.master.children import WorkerChild
from pgworker.master.fields import fields

_PATIENCE = 10.0
"""Seconds that a ready worker waits for the monitor. Should the database go away just then, nobody waits longer: the
worker may run jobs by now, which a service manager would end with a start that takes too long for it, and a pool that
runs waits for the database by itself."""

log = logging.getLogger("pgworker.master")


class Readiness:
    """What is said once, when the pool is ready. Times are of the monotonic clock."""

    def __init__(self, workers: Sequence[WorkerChild], board: Board, queues: Sequence[str]) -> None:
        self._workers = workers
        self._board = board
        self._queues = ", ".join(queues)
        self._since: float | None = None
        self.is_announced = False

    @property
    def had_worker(self) -> bool:
        """Whether a worker has ever been ready: the app can be imported, and the database be used."""
        return self._since is not None

    def announce(self, now: float, workers: int) -> bool:
        """Called in every round; True in the one in which the pool of so many workers has become ready."""
        if self._since is None and any(child.pid and child.row.is_ready for child in self._workers):
            self._since = now
        if self.is_announced or self._since is None or not any(child.is_up for child in self._workers):
            return False
        if not self._board.is_connected and now - self._since < _PATIENCE:
            return False
        self.is_announced = True
        told = fields("pool_ready", workers=workers, queues=self._queues)
        log.info("the pool is ready: %d workers on %s", workers, self._queues, extra=told)
        return True
