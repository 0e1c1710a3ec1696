"""What a pool has done in its life: its last line."""

from __future__ import annotations

import logging
import time

from pgworker.master.fields import fields

log = logging.getLogger("pgworker.master")


class Count:
    """Executions of workers that have ended; the clock starts with it."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._jobs = 0
        self._failed = 0

    def add(self, jobs: int, failed: int) -> None:
        """A worker has ended that has run so many, of which so many ended otherwise than succeeded."""
        self._jobs += jobs
        self._failed += failed

    def tell(self, *, in_time: bool) -> None:
        """The pool has ended; not `in_time`: what still ran had to be stopped."""
        duration = round(time.monotonic() - self._since, 3)
        succeeded, failed = self._jobs - self._failed, self._failed
        done = f"of {self._jobs} executions {succeeded} succeeded, in {duration:.0f} s"
        told = {"jobs": self._jobs, "succeeded": succeeded, "failed": failed, "duration": duration}
        if in_time:
            log.info("drained: %s", done, extra=fields("drained", **told))
        else:
            log.warning(
                "drained, but not in time: what still ran was stopped and went back to the queue, uncharged; %s",
                done,
                extra=fields("drain_timed_out", **told),
            )
