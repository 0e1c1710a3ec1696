"""What is done to many jobs at once: asked for twice, shown while it goes on, and interrupted without harm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

import click


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
