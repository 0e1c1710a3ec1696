"""How long a job is on trial that may have been the end of its worker: nothing else starts there meanwhile.

Should the worker die in that time, then of this job. Each suspicion makes the next trial four times as long, so that
whatever kills is on trial when it does, and is charged for it, however late it comes to that.
"""

from __future__ import annotations

_FIRST = 0.5
"""Seconds: who kills does so at once, as a rule."""

_LONGEST = 12
"""Suspicions that count: the trial is longer than any job by then."""


def trial(suspicions: int) -> float:
    """Seconds, for a job of which so many executions in a row ended with their worker, and perhaps were its end."""
    return _FIRST * 4.0 ** (min(suspicions, _LONGEST) - 1) if suspicions else 0.0
