"""What the demo says while it goes on: to stderr, on a terminal only; with a bar if rich is there to draw it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """One stage after the other, and lines about what happens in them."""

    def stage(self, title: str, total: int = 0) -> None:
        """The next stage; no `total`: nobody knows how long it takes."""

    def advance(self, done: int) -> None:
        """So many of the total are done."""

    def tell(self, line: str) -> None:
        """Something happened."""


@contextmanager
def open_progress() -> Iterator[Progress]:
    """What suits stderr: silence, a line that is overwritten, or rich's bar. Starts no thread: the demo forks."""
    if not sys.stderr.isatty():
        yield _Silence()
    elif find_spec("rich") is None:
        line = _Line()
        try:
            yield line
        finally:
            line.clear()
    else:
        with _rich_bar() as bar:
            yield bar


class _Silence:
    def stage(self, title: str, total: int = 0) -> None: ...
    def advance(self, done: int) -> None: ...
    def tell(self, line: str) -> None: ...


class _Line:
    def __init__(self) -> None:
        self._title = ""
        self._total = 0

    def stage(self, title: str, total: int = 0) -> None:
        self._title, self._total = title, total
        self.advance(0)

    def advance(self, done: int) -> None:
        count = f" {done}/{self._total}" if self._total else ""
        room = get_terminal_size().columns - 1
        self._write(f"\r\x1b[K{f'{self._title}{count}'[:room]}")

    def tell(self, line: str) -> None:
        self._write(f"\r\x1b[K{line}\n")

    def clear(self) -> None:
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class _Bar:
    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, count="")
        self._total = 0

    def stage(self, title: str, total: int = 0) -> None:
        self._total = total
        self._bar.reset(self._task, description=title, total=total or None, count="")
        self._bar.refresh()

    def advance(self, done: int) -> None:
        self._bar.update(self._task, completed=done, count=f"{done}/{self._total}", refresh=True)

    def tell(self, line: str) -> None:
        from rich.text import Text

        self._bar.console.print(Text(line, style="yellow"))


@contextmanager
def _rich_bar() -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    counted = TextColumn("{task.fields[count]}")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,  # or what the pool logs would go through rich
        redirect_stderr=False,
    ) as bar:
        yield _Bar(bar)
