"""What the workers of the pool do and use, by the board and the kernel: for their heartbeats and for /metrics."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil

from pgworker.lifecycle.heartbeat import Activity, RunningJob
from pgworker.linux.board import Board, Row
from pgworker.linux.memory import private_bytes
from pgworker.model.state import WorkerState

_LOOK_EVERY = 15.0  # seconds between two looks at the memory of a process, which cost milliseconds per GB


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: memory that no other shares, as of at most 15 s ago, and CPU time."""

    uss_bytes: int
    cpu_seconds: float


class Activities:
    """Looks at the workers. Both the monitor's thread and those of the pages ask."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lock = threading.Lock()
        self._memory: dict[UUID, tuple[float, int]] = {}
        self._spent: dict[int, tuple[UUID, float, float]] = {}
        """By place: who is there, the CPU time of those before, and his."""

    def of(self, row: Row, now_ns: int) -> Activity:
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

    def usage(self, row: Row) -> Usage | None:
        """None: no process is in this place."""
        if not row.pid:
            return None
        try:
            worker_id = row.worker_id
            times = psutil.Process(row.pid).cpu_times()
            self._note_cpu(row.index, worker_id, times.user + times.system)
            return Usage(self._private_bytes(row), times.user + times.system)
        except (psutil.Error, OSError):  # it ended meanwhile
            return None

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

    def _private_bytes(self, row: Row) -> int:
        with self._lock:
            now = time.monotonic()
            seen_at, size = self._memory.get(row.worker_id, (0.0, 0))
            if not size or now - seen_at >= _LOOK_EVERY:
                size = private_bytes(Path(f"/proc/{row.pid}"))
                self._memory = {known: seen for known, seen in self._memory.items() if now - seen[0] < 2 * _LOOK_EVERY}
                self._memory[row.worker_id] = now, size
            return size

    def _state(self, row: Row, *, is_running: bool) -> WorkerState:
        if not row.is_ready:
            return WorkerState.STARTING
        if row.is_draining:
            return WorkerState.DRAINING
        if is_running:
            return WorkerState.BUSY
        return WorkerState.PAUSED if self._board.is_paused else WorkerState.IDLE
