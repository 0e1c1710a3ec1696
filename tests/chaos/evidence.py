"""Evidence that is kept outside of what is tried: files of lines, each appended in one write.

- the producer's ledger: PLAN before a job is enqueued, ACKED once its COMMIT has returned; ASKED before a job is
  cancelled, CANCELLED once that was the answer;
- a ledger for each worker process: BEGAN before an execution is shown to anybody, STARTED when its handler begins,
  ACKED when its settle has returned, FENCED when the settle was refused;
- the fault log, in JSON, of what was done to the world and when.

A line is whole even if the process that wrote it is killed by the next instruction, and none is lost with it: the
kernel has it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLAN, ACKED = "PLAN", "ACKED"
ASKED, CANCELLED = "ASKED", "CANCELLED"
ROLLED_BACK = "ROLLED_BACK"
BEGAN, STARTED, FENCED = "BEGAN", "STARTED", "FENCED"

PRODUCER = "producer.ledger"
FAULTS = "faults.jsonl"


class Ledger:
    """A file of lines of words. Safe between threads and processes: each line is one write at the file's end."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def note(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())

    def note_all(self, lines: list[tuple[object, ...]]) -> None:
        """Many lines at once, in one write."""
        if lines:
            os.write(self._fd, "".join(" ".join(map(str, words)) + "\n" for words in lines).encode())

    def close(self) -> None:
        os.close(self._fd)


def append(file: Path, *words: object) -> None:
    """One line, for whoever is told each time which file it is."""
    ledger = Ledger(file)
    try:
        ledger.note(*words)
    finally:
        ledger.close()


class FaultLog:
    """What was done to the world, with the seconds since it began."""

    def __init__(self, directory: Path) -> None:
        self._ledger = Ledger(directory / FAULTS)
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.happened: dict[str, int] = {}
        """How often what happened."""

    def begin(self) -> None:
        """Count from now: the world is ready."""
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return time.monotonic() - self._began

    def tell(self, event: str, **facts: Any) -> None:
        self._ledger.note(json.dumps({"at": round(self.now, 3), "event": event, **facts}, default=str))
        with self._lock:
            self.happened[event] = self.happened.get(event, 0) + 1


def read(file: Path) -> Iterator[list[str]]:
    """The lines of a ledger, each as its words."""
    with file.open() as lines:
        for line in lines:
            yield line.split()


def worker_ledgers(directory: Path) -> list[Path]:
    return sorted(directory.glob("worker-*.ledger"))
