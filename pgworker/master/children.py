"""The children of a pool: forked, watched, signalled, reaped. What they run is handed in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from pgworker.linux import stacks
from pgworker.linux.control import ControlChannel, Shared
from pgworker.linux.fork import fork_child
from pgworker.linux.pidfd import kill_group
from pgworker.linux.row import BoardRow
from pgworker.linux.wake import wake

RunWorker = Callable[[int], int]
"""The worker of this index, in the child; returns its exit code."""

RunMonitor = Callable[[ControlChannel], int]
"""The monitor, in the child, with its end of the control channel; returns its exit code."""

_DUMPS_WHEN_HANDLED = (stacks.ASK, stacks.FORCE)
_BLOCKED_UNTIL_HANDLED = (signal.SIGTERM, *_DUMPS_WHEN_HANDLED)
"""They would kill a child that has not installed its handlers yet; it unblocks them when it has."""


@dataclass(slots=True)
class WorkerChild:
    """One place for a worker, and the process in it, if any."""

    row: BoardRow
    wake_pipe: int
    is_wanted: bool
    """Whether there is to be a worker in this place; one that is not any more may still drain."""
    pid: int = 0
    forked_at: float = 0.0
    failures: int = 0
    """How often in a row it ended without finishing a job."""
    start_at: float = 0.0
    """When to fork the next one, by the monotonic clock."""
    awaits_ack: str | None = None
    """The incarnation whose death the monitor has not recorded yet; until then the row must stay as it is."""
    asked: str = ""
    """What the master has asked the process to drain for, in words."""
    asked_at: float = 0.0
    """When it asked first."""
    given_up: str = ""
    """Why the master has killed the process while it held nothing, in words."""
    empty_since: float = 0.0
    """When it was last seen at work, or with something to hand back."""

    @property
    def is_startable(self) -> bool:
        return self.is_wanted and self.pid == 0 and self.awaits_ack is None

    @property
    def is_up(self) -> bool:
        """Whether there is a worker that works, and is to go on."""
        return self.pid != 0 and self.row.is_ready and not self.row.is_draining

    def drain(self, why: str) -> None:
        """Have the process claim nothing more, finish what it runs and end."""
        if not self.asked:
            self.asked, self.asked_at = why, time.monotonic()
        self.row.ask_drain()
        self.wake()

    def give_up(self, why: str) -> None:
        """Kill a process that holds nothing: one that is not ready, or one that has drained."""
        self.given_up = why
        kill_group(self.pid, signal.SIGKILL)

    def wake(self) -> None:
        wake(self.wake_pipe)


@dataclass(slots=True)
class MonitorChild:
    pid: int = 0
    forked_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    channel: ControlChannel | None = field(default=None)


class Forker:
    """Forks workers and monitors from this process, which has one thread and no connection."""

    def __init__(self, shared: Shared, run_worker: RunWorker, run_monitor: RunMonitor) -> None:
        self._shared = shared
        self._run_worker = run_worker
        self._run_monitor = run_monitor

    def fork_worker(self, child: WorkerChild) -> None:
        """Start a worker in this place, with a new identity and a clean row."""
        index = child.row.index
        read, write = self._shared.wakes[index]
        _empty(read)
        stack = self._shared.stacks[index]
        stack.clear()
        child.row.reset(uuid4(), time.monotonic_ns())
        child.pid = fork_child(
            lambda: self._run_worker(index),
            keep_fds={read, write, stack.fileno(), self._shared.events_out.fileno(), *self._shared.app_fds},
            death_signal=signal.SIGKILL,
            blocked=_BLOCKED_UNTIL_HANDLED,
        )
        child.forked_at = time.monotonic()
        child.asked = child.given_up = ""
        child.row.pid = child.pid

    def fork_monitor(self, child: MonitorChild, tell: Callable[[], None]) -> None:
        """Start a monitor with a channel of its own. `tell` sends what it must hear first, before the fork."""
        if child.channel is not None:
            child.channel.close()
            child.channel = None
        ours, theirs = ControlChannel.pair()
        child.channel = ours
        tell()
        stack = self._shared.monitor_stack
        stack.clear()
        keep = {
            theirs.fileno(),
            stack.fileno(),
            self._shared.events_in.fileno(),
            *(write for _, write in self._shared.wakes),
        }
        if self._shared.listening is not None:
            keep.add(self._shared.listening.fileno())
        try:
            child.pid = fork_child(
                lambda: self._run_monitor(theirs), keep_fds=keep, death_signal=None, blocked=_DUMPS_WHEN_HANDLED
            )
        except OSError:
            ours.close()
            child.channel = None
            raise
        finally:
            theirs.close()
        child.forked_at = time.monotonic()


def _empty(pipe: int) -> None:
    """Wake-ups meant for the process before."""
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return
