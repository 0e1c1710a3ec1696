"""Waiting for jobs: however many are waited for, by threads and event loops, one thread asks for all of them at once.

A job is asked for at once, then again and again after a twentieth of the time that it has been waited for, at least
20 ms and at most a second. Those times lie on a grid that is the coarser the longer the wait, so that jobs that are
waited for about equally long fall due together. One statement asks for all that are due; the next one follows after
20 ms, or at once for somebody new: who waits for a thousand jobs that have ended already is told without a pause.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Final
from uuid import UUID

from pgworker.app.connections import Connections
from pgworker.app.per_process import PerProcess
from pgworker.errors import AppClosed, DatabaseUnavailable, JobNotFound, PgworkerError, WaitTimeout
from pgworker.inspection.results import JobResult, find_results

TICK: Final = 0.02
"""Seconds between two statements, at least, that ask for the same jobs."""

_SHARE: Final = 0.05
_LONGEST: Final = 1.0
_MOST: Final = 1000
"""Jobs asked for in one statement. With results of 64 KiB each, its answer has 64 MB."""

_GRACE: Final = 1.0
"""Seconds after its time that a wait ends by itself, should the database not answer."""


def next_look(now: float, begun: float) -> float:
    """When a job that has been waited for since `begun` is asked for again. Both by the same clock."""
    interval = min(max(TICK, (now - begun) * _SHARE), _LONGEST)
    doublings = math.floor(math.log2(interval / TICK))
    return ((math.floor(now / TICK) >> doublings) + 1 << doublings) * TICK


class Results:
    """What became of jobs, for those who wait. For all threads; a forked child starts anew."""

    def __init__(self, connections: Connections) -> None:
        self._waiters = PerProcess(lambda: _Waiter(connections))

    def wait(self, job_id: UUID, timeout: float | None) -> JobResult:
        """What became of the job, once that is final.

        The last look is when the time is up, and there is one at least, even with a timeout of 0. WaitTimeout;
        JobNotFound; AppClosed; an error of the database that doesn't pass by itself: an outage is waited out.
        """
        waiter = self._waiters.get()
        wait = waiter.add(job_id, timeout)
        try:
            return wait.future.result(_limit(timeout))
        except WaitTimeout:
            raise
        except futures.TimeoutError:
            raise waiter.timeout(job_id) from None
        finally:
            waiter.remove(wait)

    async def wait_async(self, job_id: UUID, timeout: float | None) -> JobResult:
        """`wait`, on an event loop."""
        waiter = self._waiters.get()
        wait = waiter.add(job_id, timeout)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(wait.future), _limit(timeout))
        except WaitTimeout:
            raise
        except asyncio.TimeoutError:
            raise waiter.timeout(job_id) from None
        finally:
            waiter.remove(wait)

    def close(self) -> None:
        """Have everybody who waits in this process raise AppClosed."""
        if waiter := self._waiters.pop():
            waiter.close()


def _limit(timeout: float | None) -> float | None:
    return None if timeout is None else timeout + _GRACE


@dataclass(slots=True, eq=False)
class _Wait:
    """Somebody who waits, from `begun` until `ends`, and when to ask for him next."""

    job_id: UUID
    begun: float
    ends: float
    due: float
    is_new: bool = True
    was_missing: bool = False
    future: futures.Future[JobResult] = field(default_factory=futures.Future)


class _Waiter:
    """One process's waits, and the thread that asks for them while there are any."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._changed = threading.Condition()
        self._waits: set[_Wait] = set()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._asked_at = -math.inf
        self._outage: DatabaseUnavailable | None = None

    def add(self, job_id: UUID, timeout: float | None) -> _Wait:
        now = time.monotonic()
        wait = _Wait(job_id, now, math.inf if timeout is None else now + timeout, due=now)
        wait.future.set_running_or_notify_cancel()  # so that a task that is cancelled doesn't cancel it, and race us
        with self._changed:
            if self._is_closed:
                raise _closed(job_id)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="pgworker results", daemon=True)
                thread.start()
                self._thread = thread
            self._waits.add(wait)
            self._changed.notify()
        return wait

    def remove(self, wait: _Wait) -> None:
        """He waits no more. With the last one the thread ends."""
        with self._changed:
            if wait in self._waits:
                self._waits.remove(wait)
                self._changed.notify()

    def timeout(self, job_id: UUID) -> WaitTimeout:
        """The error that says so."""
        why = "" if self._outage is None else f", and the database could not be asked: {self._outage}"
        return WaitTimeout(f"job {job_id} has not ended within the time given{why}; it goes on")

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            for wait in list(self._waits):
                self._end(wait, _closed(wait.job_id))
            self._changed.notify()

    # -- the thread

    def _run(self) -> None:
        while due := self._next():
            self._ask(due)

    def _ask(self, due: Sequence[_Wait]) -> None:
        try:
            with self._connections.statement() as connection:
                found = find_results(connection, list({wait.job_id for wait in due}))
        except DatabaseUnavailable as outage:
            self._put_off(due, outage)
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear of it
            self._fail(due, error)
        else:
            self._answer(due, {result.job_id: result for result in found})

    def _next(self) -> Sequence[_Wait]:
        """Those that are due, as soon as there are any; none if nobody waits any more."""
        with self._changed:
            while self._waits:
                now = time.monotonic()
                at = now
                if not any(wait.is_new for wait in self._waits):
                    at = max(self._asked_at + TICK, min(wait.due for wait in self._waits))
                if at <= now:
                    return nsmallest(_MOST, (w for w in self._waits if w.due <= now), key=lambda wait: wait.due)
                self._changed.wait(at - now)
            self._thread = None
            return ()

    def _answer(self, due: Sequence[_Wait], found: dict[UUID, JobResult]) -> None:
        """Who waits for what was found is told so; the others are due again, or out of time."""
        with self._changed:
            self._outage = None
            self._asked_at = now = time.monotonic()
            for wait in due:
                wait.is_new = False
                result = found.get(wait.job_id)
                if result is not None and result.status is not None:
                    self._end(wait, result)
                elif result is not None and wait.was_missing:
                    self._end(wait, JobNotFound.of(wait.job_id))
                elif wait.ends <= now and result is None:
                    self._end(wait, self.timeout(wait.job_id))
                else:
                    # A second look makes sure that it isn't there: jobs that outlive their day are copied into
                    # another table, where snapshots from before that don't see them.
                    wait.was_missing = result is not None
                    wait.due = now if wait.was_missing else min(wait.ends, next_look(now, wait.begun))

    def _put_off(self, due: Sequence[_Wait], outage: DatabaseUnavailable) -> None:
        with self._changed:
            self._outage = outage
            self._asked_at = now = time.monotonic()
            for wait in due:
                wait.is_new = False
                if wait.ends <= now:
                    self._end(wait, self.timeout(wait.job_id))
                else:
                    wait.due = now + _LONGEST

    def _fail(self, due: Sequence[_Wait], error: Exception) -> None:
        with self._changed:
            self._asked_at = time.monotonic()
            for wait in due:
                own: Exception = error
                if isinstance(error, PgworkerError):  # to each his own: raised by many, one would collect tracebacks
                    own = type(error)(*error.args)
                    own.__cause__ = error
                self._end(wait, own)

    def _end(self, wait: _Wait, outcome: JobResult | Exception) -> None:
        """Once; under the lock."""
        if wait not in self._waits:
            return
        self._waits.remove(wait)
        if isinstance(outcome, Exception):
            wait.future.set_exception(outcome)
        else:
            wait.future.set_result(outcome)


def _closed(job_id: UUID) -> AppClosed:
    return AppClosed(f"the App was closed while job {job_id} was waited for; the job goes on")
