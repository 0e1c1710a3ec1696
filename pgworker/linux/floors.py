"""Where claims start, lane by lane: the words of the board beyond which no job of ours is due that anybody knows of."""

from __future__ import annotations

_FLOOR_US, _FLOOR_ID = range(2)

LANE_WORDS = 2
"""So many of the board has each lane."""


class Floors:
    """Where claims start, per lane: `run_at` in microseconds of the epoch, and the time half of a job id."""

    def __init__(self, words: memoryview, first: int, lanes: int) -> None:
        self._words = words
        self._first = first
        self._lanes = lanes

    def read(self) -> tuple[list[int], list[int]]:
        """All floors: their times, their ids."""
        end = self._first + self._lanes * LANE_WORDS
        words = self._words[self._first : end].tolist()
        return words[_FLOOR_US::LANE_WORDS], words[_FLOOR_ID::LANE_WORDS]

    def advance(self, lane: int, seen: tuple[int, int], claimed: tuple[int, int]) -> None:
        """Raise a floor to the last job claimed, unless somebody has lowered it since it was `seen`."""
        at = self._first + lane * LANE_WORDS
        now = (self._words[at], self._words[at + 1])
        if seen <= now < claimed:
            self._words[at], self._words[at + 1] = claimed

    def lower(self, lane: int, found: tuple[int, int]) -> None:
        """Let claims find a job that is there again: bring the floor down to it, should it be above.

        If it is not, it goes down by the least step: whoever has read it and claims at this moment, without seeing the
        job yet, would raise it over the job else.
        """
        at = self._first + lane * LANE_WORDS
        floor = self._words[at], self._words[at + 1]
        if found >= floor:
            found = (floor[0], floor[1] - 1) if floor[1] else (max(floor[0], 1) - 1, 0)
        self._words[at], self._words[at + 1] = found
