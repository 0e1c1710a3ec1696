"""What a trial is: one promise, tried so many times, and the figures that came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgworker.db.embedded import Server


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a promise. `holds`: it is within what is promised; None: it is told, and nothing is promised."""

    name: str
    promised: str
    found: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a trial runs: a server that no other uses now, an empty directory, dice, and how often it is tried."""

    server: Server
    directory: Path
    dice: random.Random
    size: int
    tell: Callable[[str], None]
    """Says one line of progress."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One promise and how it is tried. Sizes are counts of `unit`: `full` for a release, `short` for every day."""

    name: str
    promise: str
    unit: str
    full: int
    short: int
    run: Callable[[Bench], Sequence[Figure]]
    server_options: tuple[tuple[str, str], ...] = ()
    """Settings of the private server, such as ("fsync", "on")."""
