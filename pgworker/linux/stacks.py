"""Where a process is: dumps of its stacks into a memory file that its parent holds too, and can read after its death.

Two signals, since neither does for all. ASK is answered by Python, between two bytecodes and with the GIL: nothing
moves while it looks, but a process stuck in C doesn't answer. FORCE is answered by faulthandler in C, whoever holds the
GIL; it walks frames while they may change, and with 10 of 24 busy loads that was a segfault after 6 to 330
dumps (CPython 3.10 to 3.13; 67,000 ASKs: none). So ASK, and FORCE only where the file stays empty and the
process is to be killed anyway. While C code holds the GIL no frame changes, and FORCE is safe.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
from types import FrameType

ASK = signal.SIGUSR1
FORCE = signal.SIGRTMIN  # nobody sends this one by hand


class StackFile:
    """A file in memory, made before the fork and inherited: the child writes, the parent reads."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("pgworker-stacks")
        # Parent and child share one offset. Appending doesn't look at it, so `clear` can truncate behind the writer.
        fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_APPEND)

    def fileno(self) -> int:
        """The descriptor: to keep across the fork, and to `install` in the child."""
        return self._fd

    def size(self) -> int:
        """Bytes that have been dumped."""
        return os.fstat(self._fd).st_size

    def read(self, limit: int = 32 * 1024) -> str:
        """What has been dumped; of more than `limit` bytes, the beginning (it has the cause) and the end."""
        size = os.fstat(self._fd).st_size
        if size <= limit:
            return _printable(os.pread(self._fd, size, 0))
        half = limit // 2
        head, tail = os.pread(self._fd, half, 0), os.pread(self._fd, half, size - half)
        return f"{_printable(head)}\n[... {size - 2 * half} bytes left out ...]\n{_printable(tail)}"

    def clear(self) -> None:
        """Forget what has been dumped."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Release the parent's descriptor."""
        os.close(self._fd)


def install(fd: int, ask: int = ASK, force: int = FORCE) -> None:
    """Dump the stacks of all threads to `fd` at `ask` and `force`, unblocking both, and at a fatal signal (SIGSEGV...).

    The descriptor must stay open. Call it in the main thread, early: before it, both signals kill the process.
    """

    def dump(_number: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(fd, all_threads=True)

    signal.signal(ask, dump)
    faulthandler.register(force, file=fd, all_threads=True, chain=False)
    faulthandler.enable(file=fd, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (ask, force))


def _printable(raw: bytes) -> str:
    """As text that any log and any database takes: whatever else was written there shows as U+FFFD."""
    text = raw.decode("utf-8", "replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
