"""Why a worker is replaced between two jobs, though nothing is wrong with it."""

from __future__ import annotations

from enum import Enum


class RecycleReason(int, Enum):
    """The limit that a worker has reached; the words on the board are these numbers."""

    NONE = 0
    JOBS = 1
    MEMORY = 2
    AGE = 3

    @property
    def words(self) -> str:
        return _WORDS[self]


_WORDS = {
    RecycleReason.NONE: "no limit reached",
    RecycleReason.JOBS: "it has run its --max-jobs",
    RecycleReason.MEMORY: "it uses its --max-memory",
    RecycleReason.AGE: "it has reached its --max-age",
}
