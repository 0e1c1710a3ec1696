"""What follows the death of a worker: a new one at once, a new one later, or the end of a pool that can't start."""

from __future__ import annotations

import logging
import time

from pgworker.errors import EXIT_BUG, EXIT_CONFIGURATION, EXIT_CRASH_LOOP
from pgworker.linux.pidfd import Exit
from pgworker.master.children import WorkerChild
from pgworker.model.retry import Backoff

_PROVEN = 60.0  # seconds after which a worker that ends by a bug of ours is no sign that the next one will soon
_BOOT_FAILURES = 3  # of every worker, none ever ready: the app is broken, not unlucky

log = logging.getLogger("pgworker.master")


class Restarts:
    """Backoff for workers that finish no job or end by a bug of ours; and how often none of the pool could start."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._boot_exits: list[int] = []

    def plan(self, child: WorkerChild, exit_: Exit, *, done: int, clean: bool) -> str:
        """Say when this place gets its next worker: in its `start_at`, and in words."""
        lived = time.monotonic() - child.forked_at
        proven = clean or (done > 0 and (exit_.code != EXIT_BUG or lived > _PROVEN))
        child.failures = 0 if proven else child.failures + 1
        delay = self._backoff.delay(child.failures, 0.0) if child.failures else 0.0
        child.start_at = time.monotonic() + delay
        return f"in {delay:g} s" if delay else "at once"

    def give_up(self, exit_: Exit, places: int) -> int | None:
        """A worker ended before any was ready. What is wrong with the app is wrong for all of them: the exit code of
        the pool, once that is certain."""
        self._boot_exits.append(exit_.code if exit_.code is not None else EXIT_CRASH_LOOP)
        if exit_.code == EXIT_CONFIGURATION:
            return EXIT_CONFIGURATION
        return EXIT_CRASH_LOOP if len(self._boot_exits) >= _BOOT_FAILURES * places else None
