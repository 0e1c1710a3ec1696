"""A terminal: a command runs on its pty, and what a person would see of it can be asked for."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyte

from tests.process.pool import DEADLINE, eventually

ROOT = Path(__file__).parents[2]
ENTERS_SCREEN, LEAVES_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
HIDES_CURSOR, SHOWS_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """What the command has written, as bytes and as a screen. A thread reads it, as a terminal does."""

    def __init__(self, columns: int, lines: int) -> None:
        self._master, self._slave = pty.openpty()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._bytes = b""
        self._set_size(columns, lines)
        self.before = self.modes()
        self.process: subprocess.Popen[bytes]

    def run(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        """Start the command in a session whose terminal this is."""
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(OSError):  # closed at the end
            while read := os.read(self._master, 65536):
                with self._lock:
                    self._bytes += read
                    self._stream.feed(read)

    @property
    def written(self) -> bytes:
        with self._lock:
            return self._bytes

    def lines(self) -> list[str]:
        """What is on the screen."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    def text(self) -> str:
        return "\n".join(self.lines())

    @property
    def is_cursor_shown(self) -> bool:
        with self._lock:
            return not self._screen.cursor.hidden

    def modes(self) -> list[Any]:
        """What `stty -a` would tell."""
        return termios.tcgetattr(self._slave)

    def wait_for(self, *words: str, without: str | None = None, within: float = DEADLINE) -> str:
        """The screen, once all of these are on it at a time, and that is not: it may be seen half drawn."""

        def look() -> str | None:
            text = self.text()
            is_seen = all(word in text for word in words) and (without is None or without not in text)
            return text if is_seen else None

        seen = eventually(look, lambda: f"{words}, not {without}, on the screen:\n{self.text()}", within)
        assert seen is not None
        return seen

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As dragging its corner does; the kernel tells the foreground with SIGWINCH."""
        with self._lock:
            self._screen.resize(lines, columns)
            self._screen.reset()
        self._set_size(columns, lines)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for descriptor in (self._master, self._slave):
            os.close(descriptor)


@contextmanager
def opened() -> Iterator[Callable[..., Terminal]]:
    """Opens terminals, and kills what is left in them."""
    terminals: list[Terminal] = []

    def open_one(
        command: Sequence[str], *, columns: int = 80, lines: int = 24, cwd: Path = ROOT, **environment: str
    ) -> Terminal:
        terminal = Terminal(columns, lines)
        terminal.run(command, environment, cwd)
        terminals.append(terminal)
        return terminal

    try:
        yield open_one
    finally:
        for terminal in terminals:
            print(terminal.text())  # noqa: T201  pytest shows it when the test fails
            terminal.close()
