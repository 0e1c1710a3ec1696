"""What a defect is, and the bed that it is planted in: this process, whose statements and functions it changes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pgworker.sql.load
from tests.chaos.faults.fault import Fault

VARIABLE = "PGWORKER_CHAOS_DEFECT"
"""Names the defect of a pool, for `tests.chaos.launch`."""


class Bed:
    """This process, until `restore`."""

    def __init__(self) -> None:
        self.dice = random.Random()
        self.changed: dict[tuple[Any, str], Any] = {}
        """By owner and name: what was there before the first change."""
        self._undo: list[Callable[[], None]] = []
        self._texts: dict[str, str] = {}

    def replace(self, statement: str, old: str, new: str) -> None:
        """In a statement of `pgworker/sql/queries`. AssertionError if it does not have `old`, exactly once."""
        text = self._texts.get(statement) or pgworker.sql.load.query(statement)
        assert text.count(old) == 1, f"{statement}.sql has changed: it has {text.count(old)} times {old!r}"
        if not self._texts:
            original = pgworker.sql.load.query
            self.rewire(original, lambda name: self._texts.get(name) or original(name))
        self._texts[statement] = text.replace(old, new)

    def patch(self, owner: Any, name: str, value: Any) -> None:
        """An attribute of a module or class of pgworker. AttributeError if there is none of that name."""
        before = getattr(owner, name)
        self.changed.setdefault((owner, name), before)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def rewire(self, function: Any, other: Any) -> None:
        """Put another function in the place of this one, wherever it was imported or will be."""
        for module_name, module in list(sys.modules.items()):
            if module_name.partition(".")[0] in ("pgworker", "tests"):
                for name in [name for name, value in vars(module).items() if value is function]:
                    self.patch(module, name, other)

    def restore(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._texts.clear()


@dataclass(frozen=True, slots=True)
class Defect:
    """`plant` is called in every process of the pools, before they start, and in that of who enqueues and operates."""

    name: str
    breaks: str
    """One sentence: what is broken."""
    plant: Callable[[Bed], None]
    caught_by: frozenset[str]
    """Invariants, by how they begin; at least one of them must find it."""
    faults: tuple[Fault, ...] = ()
    """What reveals it, in turn; nothing: the ordinary life of jobs does."""
    gap: float = 0.5
    """Seconds between two faults."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the pools, beside the usual ones."""
    is_harmless: bool = False
    """No defect at all, but something that must not break anything: the checker has to say so."""


@contextmanager
def planted(defect: Defect) -> Iterator[Bed]:
    """Inside, this process has it."""
    bed = Bed()
    try:
        defect.plant(bed)
        yield bed
    finally:
        bed.restore()
