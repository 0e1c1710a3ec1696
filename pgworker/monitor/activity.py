"""What the workers of the pool do and use, by the board and the kernel: for their heartbeats and for /metrics.

Memory is looked at in a thread of its own. The kernel walks the page tables for it, milliseconds per GB, and under a
lock that a worker may hold for as long as it waits for memory itself: a renewal must not wait for that.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil

from pgworker.lifecycle.heartbeat import Activity, RunningJob
from pgworker.linux.board import Board
from pgworker.linux.memory import private_bytes
from pgworker.linux.row import BoardRow
from pgworker.model.state import WorkerState

_LOOK_EVERY = 15.0  # seconds between two looks at the memory of a process
_TICK = 1.0  # seconds: how soon a new process is looked at


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: memory that no other shares, as of some 15 s ago (None: not known yet), and CPU time."""

    uss_bytes: int | None
    cpu_seconds: float


class Activities:
    """Looks at the workers. The monitor's thread asks, and those of the pages do."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lock = threading.Lock()
        self._memory: dict[UUID, tuple[float, int]] = {}
        """When each process was looked at and what it had; replaced as a whole."""
        self._spent: dict[int, tuple[UUID, float, float]] = {}
        """By place: who is there, the CPU time of those before, and his."""

    def look_in_thread(self) -> None:
        """Keep knowing the memory of each process, for as long as this one lives."""
        threading.Thread(target=self._keep_looking, name="memory", daemon=True).start()

    def _keep_looking(self) -> None:
        while True:
            self._look(time.monotonic())
            time.sleep(_TICK)

    def _look(self, now: float) -> None:
        rows = {row.worker_id: row.pid for row in self._board.rows if row.pid}
        known = {worker_id: seen for worker_id, seen in self._memory.items() if worker_id in rows}
        for worker_id, pid in rows.items():
            if worker_id not in known or now - known[worker_id][0] >= _LOOK_EVERY:
                with suppress(OSError):  # it ended meanwhile
                    known[worker_id] = now, private_bytes(Path(f"/proc/{pid}"))
                    self._memory = dict(known)

    def of(self, row: BoardRow, now_ns: int) -> Activity:
        """What the worker in this row does now, and what it has used."""
        usage = self.usage(row)
        leases = {entry.index: entry.lease_id for entry in row.leases()}
        runs = tuple(
            RunningJob(leases[run.lease], run.position, max(0, now_ns - run.since_ns) // 1000)
            for run in row.runs()
            if run.lease in leases
        )
        return Activity(
            self._state(row, is_running=bool(runs)),
            runs,
            row.jobs_done,
            None if usage is None else usage.uss_bytes,
            None if usage is None else usage.cpu_seconds,
        )

    def usage(self, row: BoardRow) -> Usage | None:
        """None: no process is in this place."""
        if not row.pid:
            return None
        try:
            worker_id = row.worker_id
            times = psutil.Process(row.pid).cpu_times()
            self._note_cpu(row.index, worker_id, times.user + times.system)
        except (psutil.Error, OSError):  # it ended meanwhile
            return None
        seen = self._memory.get(worker_id)
        return Usage(None if seen is None else seen[1], times.user + times.system)

    def cpu_by_place(self) -> dict[int, float]:
        """CPU seconds of all processes that were in each place of the pool, as of the last look at each."""
        with self._lock:
            return {place: before + last for place, (_, before, last) in self._spent.items()}

    def _note_cpu(self, place: int, worker_id: UUID, seconds: float) -> None:
        with self._lock:
            known, before, last = self._spent.get(place, (worker_id, 0.0, 0.0))
            if known != worker_id:
                before, last = before + last, 0.0
            self._spent[place] = worker_id, before, max(last, seconds)

    def _state(self, row: BoardRow, *, is_running: bool) -> WorkerState:
        if not row.is_ready:
            return WorkerState.STARTING
        if row.is_draining:
            return WorkerState.DRAINING
        if self._board.is_paused:
            return WorkerState.PAUSED
        return WorkerState.BUSY if is_running else WorkerState.IDLE
