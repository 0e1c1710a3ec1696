"""How many workers: one more (TTIN), one fewer (TTOU)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from pgworker.master.children import WorkerChild
from pgworker.master.fields import fields

log = logging.getLogger("pgworker.master")


class Size:
    """The places for workers; as many as were made before the first fork."""

    def __init__(self, places: Sequence[WorkerChild]) -> None:
        self._places = places

    def __int__(self) -> int:
        return sum(child.is_wanted for child in self._places)

    def grow(self) -> None:
        """One more worker, rather in a place where none is still draining."""
        free = sorted((child for child in self._places if not child.is_wanted), key=lambda child: child.pid != 0)
        if not free:
            log.warning(
                "TTIN refused: this pool has room for %d workers; for more, start it with -w",
                int(self),
                extra=fields("signal_ignored"),
            )
            return
        child = free[0]
        child.is_wanted, child.failures, child.start_at = True, 0, time.monotonic()
        log.info("TTIN: one worker more, %d from now on", int(self), extra=fields("pool_resized", workers=int(self)))

    def shrink(self) -> None:
        """One worker fewer: the highest one drains."""
        *rest, last = [child for child in self._places if child.is_wanted]
        if not rest:
            log.warning(
                "TTOU refused: the last worker stays; USR2 pauses claiming, TERM ends the pool",
                extra=fields("signal_ignored"),
            )
            return
        last.is_wanted = False
        if last.pid:
            last.drain("TTOU")
        log.info("TTOU: one worker fewer, %d from now on", int(self), extra=fields("pool_resized", workers=int(self)))
