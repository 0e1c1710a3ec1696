"""A measurement from begin to end: as often as asked for, each time in a new database, and the medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median_low
from typing import Any

from pgworker.bench.ground import Conditions, Ground, Say, open_ground

Measure = Callable[[Ground], Sequence[Any]]
"""Returns its cases: dataclasses, always the same ones in the same order."""


@dataclass(frozen=True, slots=True)
class Report:
    """`cases`: each one's figures by name, nested ones by a longer name; the medians of so many `runs`."""

    bench: str
    conditions: Conditions
    runs: int
    cases: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """One flat object where there is one case."""
        head = {"bench": self.bench, "runs": self.runs, **asdict(self.conditions)}
        return head | (self.cases[0] if len(self.cases) == 1 else {"cases": self.cases})


def run(
    server: str,
    bench: str,
    measures: Sequence[Measure],
    say: Say,
    *,
    runs: int = 1,
    key: str | None = None,
    pooler: bool = False,
) -> Report:
    """The cases of each measure, which has a database of its own. `pooler`: the server is behind one.

    Of several runs each figure of a case is the median of its own, and that of the name `key` is told of each of them.
    """
    with open_ground(server, say, pooler=pooler) as ground:
        conditions = ground.conditions()
    every = []
    for number in range(runs):
        counted = f"run {number + 1} of {runs}: " if runs > 1 else ""
        cases: list[Any] = []
        for measure in measures:
            with open_ground(server, partial(_say, say, counted), pooler=pooler, turn=number) as ground:
                cases += measure(ground)
        every.append(cases)
    return Report(bench, conditions, runs, [_median(repeated, key) for repeated in zip(*every, strict=True)])


def _say(say: Say, counted: str, told: str) -> None:
    say(counted + told if told else "")


def _median(repeated: Sequence[Any], key: str | None) -> dict[str, Any]:
    told = [_flat(asdict(case)) for case in repeated]
    if len(told) == 1 or key is None:
        return told[0]
    every = {name: [case[name] for case in told] for name in told[0]}
    medians = {name: _middle(values) for name, values in every.items()}
    return medians | {f"{key}_runs": every[key]}


def _middle(values: Sequence[Any]) -> Any:
    """Of numbers the median; None if one is unknown. What is no number is the same in all."""
    if all(isinstance(value, int | float) for value in values):
        return median_low(values)
    return None if None in values else values[0]


def _flat(told: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Figures in figures by a longer name, those of `cost` by their own."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            found |= _flat(value, "" if name == "cost" else f"{prefix}{name}_")
        else:
            found[prefix + name] = value
    return found
