"""How long a job is on trial that may have been the end of its worker: nothing else starts there meanwhile.

Should the worker die in that time, then of this job, if it does so at once, or if nobody beside it is in doubt, who has
not run for as long as his own next trial. Else it and those are suspects once more. Each suspicion makes the next trial
four times as long, so that whatever kills is on trial when it does, and is charged for it, however late that comes.
"""

from __future__ import annotations

_FIRST = 0.5
"""Seconds: who kills does so at once, as a rule."""

_GROWTH = 4.0

_LONGEST = 12
"""Suspicions that count: the trial is longer than any job by then."""

_AT_ONCE = 1 / 8
"""Of a trial: who is on trial then, while one that is in doubt kills, is so by a chance as small as this."""


def trial(suspicions: int) -> float:
    """Seconds, for a job of which so many executions in a row ended with their worker, and perhaps were its end."""
    return _FIRST * _GROWTH ** (min(suspicions, _LONGEST) - 1) if suspicions else 0.0


def is_at_once(age: float, length: float) -> bool:
    """Whether somebody has died so soon of his trial, of this length, that nobody beside him need be asked."""
    return age < _AT_ONCE * length


def is_in_doubt(age: float, length: float) -> bool:
    """Whether somebody who has stood a trial of this length has not run for as long as the next one would be."""
    return age < _GROWTH * length
