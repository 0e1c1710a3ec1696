"""USR1: what every process of the pool is doing, in its log.

A worker answers between two bytecodes of its own and writes into the file that it shares with the master; so does the
monitor. Each answer is logged when it is there, and one that doesn't come holds up nobody. A dump in C would always
come, but may kill who is well (see `linux.stacks`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress

from pgworker.linux import process, stacks
from pgworker.linux.stacks import StackFile
from pgworker.master.children import MonitorChild, WorkerChild
from pgworker.master.fields import fields

_PATIENCE = 1.0  # seconds until a process that has not answered is named
_FATAL = "Fatal Python error"

log = logging.getLogger("pgworker.master")


class Dumps:
    """Asks for stacks, and logs what is in the files whoever asked: a USR1 to one worker alone is answered too."""

    def __init__(
        self, workers: Sequence[WorkerChild], files: Sequence[StackFile], monitor: MonitorChild, monitor_file: StackFile
    ) -> None:
        self._workers = workers
        self._files = files
        self._monitor = monitor
        self._monitor_file = monitor_file
        self._awaited: dict[int, float] = {}
        self._sizes: dict[int, int] = {}

    def ask(self, on_ladder: Container[int]) -> None:
        """Log our own stack, and ask everybody for theirs; not who is being killed, and dumps for that."""
        _log_stack(f"master (pid {os.getpid()})", os.getpid(), "".join(traceback.format_stack(sys._getframe(1))))
        for _, pid, _ in self._running():
            if pid not in on_ladder:
                self._awaited[pid] = time.monotonic() + _PATIENCE
                with suppress(ProcessLookupError):
                    os.kill(pid, stacks.ASK)

    def collect(self, on_ladder: Container[int]) -> None:
        """Log what has been dumped. What a dying process wrote stays: it is evidence, as is what a ladder asked for."""
        now = time.monotonic()
        running = list(self._running())
        for who, pid, file in running:
            size = 0 if pid in on_ladder else file.size()
            was, self._sizes[pid] = self._sizes.get(pid, 0), size
            if size and size == was:  # nothing is added to it any more
                self._log(who, pid, file)
            elif not size and now > self._awaited.get(pid, now):
                del self._awaited[pid]
                log.warning(
                    "%s has not answered: it is in C (its state is %s); its stacks come when it returns",
                    who,
                    process.state(pid),
                    extra=fields("stack_missing", worker_pid=pid),
                )
        alive = {pid for _, pid, _ in running}
        for forgotten in [pid for pid in self._sizes if pid not in alive]:
            del self._sizes[forgotten]
            self._awaited.pop(forgotten, None)

    def _log(self, who: str, pid: int, file: StackFile) -> None:
        stack = file.read()
        if _FATAL in stack:
            return
        file.clear()
        self._awaited.pop(pid, None)
        _log_stack(who, pid, stack)

    def _running(self) -> Iterator[tuple[str, int, StackFile]]:
        if self._monitor.pid:
            yield f"monitor (pid {self._monitor.pid})", self._monitor.pid, self._monitor_file
        for child in self._workers:
            if child.pid:
                yield f"worker {child.row.index} (pid {child.pid})", child.pid, self._files[child.row.index]


def _log_stack(who: str, pid: int, stack: str) -> None:
    """A line of the log for each line of the stack: readable, and one event a line all the same."""
    for line in stack.splitlines():
        if line.strip():
            log.info("%s | %s", who, line, extra=fields("stack", worker_pid=pid))
