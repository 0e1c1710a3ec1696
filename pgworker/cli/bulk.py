"""What takes long or is done to many jobs: asked for twice, shown while it goes on, interrupted without harm."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import TypeVar
from uuid import UUID

import click

from pgworker.errors import JobNotFound
from pgworker.linux.ticker import ticking

_Answer = TypeVar("_Answer", bound=Enum)


def confirm(said_yes: bool, question: Callable[[], str]) -> None:
    """Return if it is meant; else click.Abort, or UsageError where there is nobody to ask. `question` may be costly."""
    if said_yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this can't be undone, and there is no terminal to ask on: give --yes if it is meant")
    click.confirm(question(), abort=True)


def tell_of_each(job_ids: Sequence[UUID], act: Callable[[UUID], _Answer], said: Mapping[_Answer, str]) -> list[_Answer]:
    """Do it to each of these jobs, print its answer and what that means, and return them. JobNotFound, at the end."""
    answers, missing = [], []
    for job_id in dict.fromkeys(job_ids):
        try:
            answer = act(job_id)
        except JobNotFound as error:
            missing.append(str(error))
            continue
        answers.append(answer)
        print(f"{'' if len(job_ids) == 1 else f'{job_id} '}{answer.value}: {said[answer]}")
    if missing:
        raise JobNotFound("\n".join(missing))
    return answers


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
