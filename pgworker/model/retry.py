"""When a failed job runs again: capped exponential backoff with jitter.

Source: Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015. His full jitter may retry at once,
which surprises people who read "base 1 s"; so the jitter here only adds, and is a fraction of the delay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pgworker.errors import InvalidJob
from pgworker.model.durations import seconds

DEFAULT_MAX_ATTEMPTS = 25
DEFAULT_TIMEOUT = 1800.0
"""Seconds that an execution may take unless its task says otherwise."""

_CAP = 30.0  # seconds
_MAX_EXPONENT = 1000
"""2.0 ** 1024 overflows; every cap is reached long before."""


@dataclass(frozen=True, slots=True, init=False)
class Backoff:
    """Delays of base, 2·base, 4·base … up to `cap` (seconds or timedelta), each plus up to `jitter` of itself.

    Without a cap it is 30 s, or `base` if that is longer. InvalidJob for values that make no sense: a cap below the
    base, a jitter outside 0 to 1.
    """

    base: float
    cap: float
    jitter: float

    def __init__(
        self, base: float | timedelta = 1.0, cap: float | timedelta | None = None, jitter: float = 0.25
    ) -> None:
        object.__setattr__(self, "base", seconds(base, "the base of a backoff"))
        longest = max(_CAP, self.base) if cap is None else seconds(cap, "the cap of a backoff")
        object.__setattr__(self, "cap", longest)
        object.__setattr__(self, "jitter", _fraction(jitter))
        if self.cap < self.base:
            raise InvalidJob(f"the cap of a backoff ({self.cap:g} s) must not be below its base ({self.base:g} s)")

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after this many charged failures (1 or more), given a random number in 0..1."""
        assert failures >= 1
        doubled: float = self.base * 2.0 ** min(failures - 1, _MAX_EXPONENT)
        return min(self.cap, doubled) * (1.0 + self.jitter * random)


def _fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidJob("the jitter of a backoff must be a number between 0 and 1")
    return float(value)
