"""Where claims start, lane by lane: the words of the board beyond which no job of ours is due that anybody knows of."""

from __future__ import annotations

from typing import NamedTuple

_FLOOR_US, _FLOOR_ID = range(2)

LANE_WORDS = 2
"""Words of the board for each lane."""

Place = tuple[int, int]
"""Where a job is in its lane: `run_at` in microseconds of the epoch, and the time half of its id."""


class FloorsSeen(NamedTuple):
    """All floors as they were at one moment, lane by lane: a claim looks from there."""

    run_at_us: list[int]
    id_halves: list[int]

    def of(self, lane: int) -> Place:
        """That of one lane."""
        return self.run_at_us[lane], self.id_halves[lane]


class Floors:
    """Where claims start, per lane: `run_at` in microseconds of the epoch, and the time half of a job id."""

    def __init__(self, words: memoryview, first: int, lanes: int) -> None:
        self._words = words
        self._first = first
        self._lanes = lanes

    def read(self) -> FloorsSeen:
        """All of them."""
        end = self._first + self._lanes * LANE_WORDS
        words = self._words[self._first : end].tolist()
        return FloorsSeen(words[_FLOOR_US::LANE_WORDS], words[_FLOOR_ID::LANE_WORDS])

    def advance(self, lane: int, seen: Place, claimed: Place) -> None:
        """Raise a floor to the last job claimed, unless somebody has lowered it since it was `seen`."""
        at = self._first + lane * LANE_WORDS
        now = (self._words[at], self._words[at + 1])
        if seen <= now < claimed:
            self._words[at], self._words[at + 1] = claimed

    def lower(self, lane: int, found: Place) -> None:
        """Let claims find a job that is there again: bring the floor down to it, should it be above.

        If the floor is at or below the job already, it goes down by the least step all the same: a claim that is on its
        way, and has not seen the job, then fails to raise the floor past it, as `advance` compares.
        """
        at = self._first + lane * LANE_WORDS
        floor = self._words[at], self._words[at + 1]
        if found >= floor:
            found = (floor[0], floor[1] - 1) if floor[1] else (max(floor[0], 1) - 1, 0)
        self._words[at], self._words[at + 1] = found
