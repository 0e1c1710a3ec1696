"""What takes long or is done to many jobs: asked for twice, shown while it goes on, interrupted without harm."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import click

from pgworker.linux.ticker import ticking


def confirm(said_yes: bool, question: Callable[[], str]) -> None:
    """Return if it is meant; else click.Abort, or UsageError where there is nobody to ask. `question` may be costly."""
    if said_yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this can't be undone, and there is no terminal to ask on: give --yes if it is meant")
    click.confirm(question(), abort=True)


class Progress:
    """Shows numbers as they rise, on a terminal; at the end, or when it is interrupted, prints the last ones."""

    def __init__(self, *verbs: str) -> None:
        self._verbs = verbs
        self._numbers = (0,) * len(verbs)

    def tell(self, *numbers: int) -> None:
        self._numbers = numbers
        if sys.stderr.isatty():
            print(f"\r{self}", end="", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return ", ".join(f"{verb} {number}" for verb, number in zip(self._verbs, self._numbers, strict=True))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(self if kind is None else f"{self}, then interrupted")


@contextmanager
def still(what: str) -> Iterator[Callable[[], None]]:
    """On a terminal, says on stderr that `what` goes on and for how long. Yields what clears that for another line."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    begun = time.monotonic()
    shown = 0
    descriptor = sys.stderr.fileno()  # written to as it is: the stream may be in use when the timer goes off

    def tick() -> None:
        nonlocal shown
        seconds = int(time.monotonic() - begun)
        if seconds > shown:
            shown = seconds
            os.write(descriptor, f"\r{what}, {seconds} s".encode())

    def clear() -> None:
        os.write(descriptor, b"\r\x1b[K")

    try:
        with ticking(tick):
            yield clear
    finally:
        if shown:
            clear()
