"""The wake-up pipe of a worker: who wrote tells its clerk why it was woken."""

from __future__ import annotations

import contextlib
import os

WOKEN_BY_RUNNER = b"."
WOKEN_BY_OTHERS = b"!"
"""There may be new jobs, or a drain has begun."""


def wake(pipe: int, by: bytes = WOKEN_BY_OTHERS) -> None:
    """Write to the pipe, which never blocks; if it is full, its reader wakes all the same."""
    with contextlib.suppress(BlockingIOError):
        os.write(pipe, by)
