"""What the demo says while it goes on, to stderr: a bar on a terminal, a line without rich, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Protocol

from pgworker.linux.ticker import ticking

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_CLEAR = "\r\x1b[K"


class Progress(Protocol):
    """One stage after the other, and lines about what happens in them."""

    def stage(self, title: str, total: int = 0) -> None:
        """The next stage; no `total`: nobody knows how long it takes."""

    def advance(self, done: int) -> None:
        """So many of the total are done."""

    def tell(self, line: str) -> None:
        """Something happened."""

    def finish(self, line: str) -> None:
        """The stage is over, and this came of it."""


@dataclass(slots=True)
class Stages(Progress):
    """Knows where the demo is, and passes it on."""

    shown: Progress
    title: str = "not yet begun"
    total: int = 0
    done: int = 0

    def stage(self, title: str, total: int = 0) -> None:
        self.title, self.total, self.done = title, total, 0
        self.shown.stage(title, total)

    def advance(self, done: int) -> None:
        self.done = done
        self.shown.advance(done)

    def tell(self, line: str) -> None:
        self.shown.tell(line)

    def finish(self, line: str) -> None:
        self.shown.finish(line)

    def break_off(self, title: str) -> None:
        """It ends here; `title` is what that takes."""
        self.shown.stage(title)

    def __str__(self) -> str:
        return f"{self.title}, {self.done:,} of {self.total:,} done" if self.total else self.title


def wrapped(line: str, indent: str) -> str:
    """With every line of it indented, within the width of the terminal."""
    width = max(40, get_terminal_size((80, 24)).columns)
    return textwrap.fill(line, width - 1, initial_indent=indent, subsequent_indent=indent)


@contextmanager
def open_progress() -> Iterator[Stages]:
    """What suits stderr. Starts no thread: the demo forks."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield Stages(_Plain())
    elif find_spec("rich") is None:
        line = _Line()
        try:
            yield Stages(line)
        finally:
            line.clear()
    else:
        with _rich_bar() as bar:
            yield Stages(bar)


class _Plain:
    """A line for everything that happens, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def stage(self, title: str, total: int = 0) -> None:
        self._print(f"{title}, {total:,} of them" if total else title)

    def advance(self, done: int) -> None: ...

    def tell(self, line: str) -> None:
        self._print(f"  {line}")

    def finish(self, line: str) -> None:
        self._print(f"  ok  {line}")

    def _print(self, line: str) -> None:
        print(f"{time.monotonic() - self._begun:6.1f} s  {line}", file=sys.stderr, flush=True)


class _Line:
    def __init__(self) -> None:
        self._title = ""
        self._total = 0

    def stage(self, title: str, total: int = 0) -> None:
        self._title, self._total = title, total
        self.advance(0)

    def advance(self, done: int) -> None:
        count = f" {done:,}/{self._total:,}" if self._total else ""
        room = get_terminal_size().columns - 1
        self._write(f"{_CLEAR}{f'{self._title}{count}'[:room]}")

    def tell(self, line: str) -> None:
        self._write(f"{_CLEAR}{wrapped(line, '    ')}\n")

    def finish(self, line: str) -> None:
        self._write(f"{_CLEAR}ok  {wrapped(line, '    ').lstrip()}\n")

    def clear(self) -> None:
        self._write(_CLEAR)

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class _Bar:
    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, count="")
        self._total = 0
        self._is_drawing = False

    def stage(self, title: str, total: int = 0) -> None:
        with self._drawing():
            self._total = total
            self._bar.reset(self._task, description=title, total=total or None, count="")
            self._bar.refresh()

    def advance(self, done: int) -> None:
        with self._drawing():
            self._bar.update(self._task, completed=done, count=f"{done:,}/{self._total:,}", refresh=True)

    def tell(self, line: str) -> None:
        self._print(wrapped(line, "    "), "yellow", "")

    def finish(self, line: str) -> None:
        self._print("ok  ", "green", wrapped(line, "    ").lstrip())

    def tick(self) -> None:
        """Let spinner and clock move, but never into what is being drawn right now."""
        if not self._is_drawing:
            with self._drawing():
                self._bar.refresh()

    def _print(self, styled: str, style: str, rest: str) -> None:
        from rich.text import Text

        with self._drawing():
            self._bar.console.print(Text.assemble((styled, style), rest))

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        self._is_drawing = True
        try:
            yield
        finally:
            self._is_drawing = False


@contextmanager
def _rich_bar() -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn(" {task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,  # or what the pool logs would go through rich
        redirect_stderr=False,
    ) as progress:
        bar = _Bar(progress)
        with ticking(bar.tick):
            yield bar
