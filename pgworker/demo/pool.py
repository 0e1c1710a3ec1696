"""The pool at work: the one of `pgworker start`, in a child process whose log goes to a file."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pgworker.linux.fork import fork_child
from pgworker.linux.pidfd import open_pidfd, send

_KILLED_WITHIN = 5.0  # seconds


class PoolProcess:
    """A running pool; it is told to drain if this process dies. Leaving the context ends it."""

    def __init__(self, run: Callable[[], int], log: Path) -> None:
        """`run` is the whole of it, and returns its exit code; what it prints is appended to `log`.

        Fork it before there are connections or threads.
        """
        with log.open("ab") as out:

            def child() -> int:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                return run()

            self.pid = fork_child(child, keep_fds={out.fileno()}, death_signal=signal.SIGTERM, blocked=())
        self._pidfd = open_pidfd(self.pid)
        self._exit_code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal, once it has ended; None if it runs on after so many seconds."""
        if self._exit_code is None and select.select([self._pidfd], [], [], seconds)[0]:
            self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._exit_code

    def drain(self, seconds: float) -> int | None:
        """Send it TERM; its exit code, or None if it runs on after so many seconds."""
        if self._exit_code is None:
            send(self._pidfd, signal.SIGTERM)
        return self.wait(seconds)

    def __enter__(self) -> PoolProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.drain(2 * _KILLED_WITHIN) is None:
            send(self._pidfd, signal.SIGKILL)  # its workers die with it
            self.wait(_KILLED_WITHIN)
        with suppress(OSError):
            os.close(self._pidfd)
