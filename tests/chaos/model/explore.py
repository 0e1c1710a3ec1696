"""Every state that can be reached, breadth first, so that what is found is found by a shortest way."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.chaos.model.protocol import Protocol
from tests.chaos.model.state import State

STUCK = "a job waits for ever: no way without faults leads to its end"


@dataclass(frozen=True, slots=True)
class Explored:
    """How much there was. `offence`: what is broken, empty for nothing; `trace`: the steps that lead there."""

    states: int
    steps: int
    depth: int
    is_whole: bool
    offence: str = ""
    trace: list[str] = field(default_factory=list)


class Exploration:
    """States by number, in the order in which they were found, each with the number of the one it was found from."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._numbers: dict[State, int] = {}
        self._states: list[State] = []
        self._parents = array("q")
        self._shared: dict[Any, Any] = {}
        self._steps = 0

    def run(self, *, limit: int | None = None, checks_ends: bool = False) -> Explored:
        """Until there is nothing new, something is broken, or there are `limit` states.

        `checks_ends`: then also look for states from which no way without faults leads to quiet. It needs the whole.
        """
        self._add(self._protocol.start(), -1)
        onward = array("q")
        origins = array("q")
        at = 0
        while at < len(self._states):
            state = self._states[at]
            if offence := self._protocol.offence(state):
                return self._found(offence, at)
            for _, is_fault, following in self._protocol.steps(state):
                self._steps += 1
                number = self._add(following, at)
                if checks_ends and not is_fault:
                    onward.append(number)
                    origins.append(at)
            at += 1
            if limit is not None and len(self._states) >= limit:
                return Explored(len(self._states), self._steps, self._depth(at - 1), False)
        if checks_ends and (stuck := self._first_stuck(onward, origins)) is not None:
            return self._found(STUCK, stuck)
        return Explored(len(self._states), self._steps, self._depth(at - 1), True)

    def _add(self, state: State, parent: int) -> int:
        number = self._numbers.get(state)
        if number is not None:
            return number
        share = self._shared.setdefault
        state = State._make(share(part, part) if isinstance(part, tuple) else part for part in state)
        number = self._numbers[state] = len(self._states)
        self._states.append(state)
        self._parents.append(parent)
        return number

    def _first_stuck(self, onward: array[int], origins: array[int]) -> int | None:
        """Backwards from all that is quiet, along steps that are no faults; the first state that is not reached."""
        ends = array("q", bytes(8 * (len(self._states) + 1)))  # of each state, where those end that lead to it
        for number in onward:
            ends[number + 1] += 1
        for number in range(1, len(ends)):
            ends[number] += ends[number - 1]
        before = array("q", bytes(8 * len(onward)))
        free = array("q", ends)
        for number, origin in zip(onward, origins, strict=True):
            before[free[number]] = origin
            free[number] += 1
        reached = bytearray(self._protocol.is_quiet(state) for state in self._states)
        todo = [number for number, is_quiet in enumerate(reached) if is_quiet]
        while todo:
            number = todo.pop()
            for origin in before[ends[number] : ends[number + 1]]:
                if not reached[origin]:
                    reached[origin] = True
                    todo.append(origin)
        stuck = reached.find(0)
        return None if stuck < 0 else stuck

    def _found(self, offence: str, at: int) -> Explored:
        return Explored(len(self._states), self._steps, self._depth(at), False, offence, self._trace(at))

    def _way(self, at: int) -> list[int]:
        way = [at]
        while (at := self._parents[at]) >= 0:
            way.append(at)
        return way[::-1]

    def _depth(self, at: int) -> int:
        return len(self._way(at)) - 1

    def _trace(self, at: int) -> list[str]:
        way = self._way(at)
        return [self._label(before, after) for before, after in pairwise(way)]

    def _label(self, before: int, after: int) -> str:
        wanted = self._states[after]
        labels: Iterator[str] = (
            label for label, _, following in self._protocol.steps(self._states[before]) if following == wanted
        )
        return next(labels)
