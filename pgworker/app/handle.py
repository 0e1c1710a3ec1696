"""A stored job in the hands of whoever enqueued it: what enqueue returns, and `app.job(id)`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from pgworker.app.connections import Connections
from pgworker.app.results import Results
from pgworker.db.status import read_status
from pgworker.errors import ErrorRecord, JobCancelled, JobFailed, JobNotFound
from pgworker.inspection.progress import read_progress
from pgworker.inspection.results import JobResult
from pgworker.lifecycle.cancel import cancel_job
from pgworker.model import exact
from pgworker.model.durations import seconds
from pgworker.model.failure import why_failed
from pgworker.model.progress import Progress
from pgworker.model.state import CancelAnswer, Outcome, Status

R = TypeVar("R", covariant=True)


class JobHandle(Generic[R]):
    """A job by its id: immutable, equal to others with that id; `str()` is the id. Its methods ask, nothing else does.

    `R` is what the job returns. All methods go through connections of the App's own, so they see what is committed;
    they raise as `enqueue` does, and JobNotFound.
    """

    __slots__ = ("_id", "_jobs", "_task")

    def __init__(self, job_id: bytes, task: str | None, jobs: Jobs) -> None:
        # A bulk enqueue makes a hundred thousand of them: a frozen dataclass takes three times as long, and a UUID,
        # which few may ask for, as long again.
        self._id = job_id
        self._task = task
        self._jobs = jobs

    @property
    def id(self) -> UUID:
        return UUID(bytes=self._id)

    def status(self) -> Status:
        """Where the job stands."""
        return self._jobs.status(self.id)

    def cancel(self) -> CancelAnswer:
        """Cancel the job: one that waits at once; one that runs is asked to stop, and killed after the grace."""
        return self._jobs.cancel(self.id)

    def wait(self, timeout: float | timedelta | None = None) -> R:
        """What the job returned, once it has succeeded; None if that could not be stored.

        It is of the type that the task is annotated to return where JSON can be read as that, else plain JSON.
        A failure that will be retried is waited for. `timeout` in seconds or a timedelta; 0 looks once.
        JobFailed: it is a dead letter. JobCancelled. WaitTimeout, a TimeoutError: the time is up, the job goes on.
        InvalidResult: the result is not of that type. An outage of the database is waited out. AppClosed: somebody
        closed the App meanwhile.
        """
        return self._read(self._jobs.results.wait(self.id, _seconds(timeout)))

    def progress(self) -> Progress | None:
        """How far the job is, by what it said last with `ctx.progress`.

        None: nothing was said, or the job has ended for good. One that will run again, or is a dead letter, keeps it.
        """
        return self._jobs.progress(self.id)

    async def status_async(self) -> Status:
        """`status`, on an event loop."""
        return await asyncio.to_thread(self.status)

    async def cancel_async(self) -> CancelAnswer:
        """`cancel`, on an event loop."""
        return await asyncio.to_thread(self.cancel)

    async def progress_async(self) -> Progress | None:
        """`progress`, on an event loop."""
        return await asyncio.to_thread(self.progress)

    async def wait_async(self, timeout: float | timedelta | None = None) -> R:
        """`wait`, on an event loop. No thread is held while it waits."""
        return self._read(await self._jobs.results.wait_async(self.id, _seconds(timeout)))

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def __eq__(self, other: object) -> bool:
        return self._id == other._id if isinstance(other, JobHandle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._id)

    def _read(self, result: JobResult) -> R:
        if result.status is Status.DEAD_LETTER:
            raise _failed(result)
        if result.status is Status.CANCELLED:
            raise JobCancelled(f"job {self.id} was cancelled{f': {result.cause}' if result.cause else ''}")
        value: R = self._jobs.read(self._task, result.result)
        return value


class Jobs:
    """What the handles of an App share: its connections, the wait for results, and who can read these.

    `read` makes the value of a stored result, given the name of the task if it is known.
    """

    def __init__(self, connections: Connections, read: Callable[[str | None, str | None], Any]) -> None:
        self.results = Results(connections)
        self.read = read
        self._connections = connections

    def named(self, job_id: UUID | str) -> JobHandle[Any]:
        """The handle for an id, a UUID or a string of one; JobNotFound for a string that can be no job's."""
        return JobHandle(_uuid(job_id).bytes, None, self)

    def status(self, job_id: UUID) -> Status:
        with self._connections.statement() as connection:
            return read_status(connection, job_id)

    def progress(self, job_id: UUID) -> Progress | None:
        with self._connections.statement() as connection:
            return read_progress(connection, job_id)

    def cancel(self, job_id: UUID) -> CancelAnswer:
        with self._connections.connection() as connection:
            return cancel_job(connection, job_id)


def _uuid(job_id: object) -> UUID:
    if isinstance(job_id, UUID):
        return job_id
    text = exact.text(job_id)
    if text is None:
        raise TypeError(f"the id of a job is a UUID or a string of one, not {exact.type_name(job_id)}")
    try:
        return UUID(text)
    except ValueError:
        raise JobNotFound(f"{text[:80]!a} is no job's id: ids are UUIDs") from None


def _seconds(timeout: float | timedelta | None) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout", error=ValueError)


def _failed(result: JobResult) -> JobFailed:
    error = None if result.error is None else msgspec.json.decode(result.error, type=ErrorRecord)
    outcome = Outcome(result.outcome or Outcome.FAILED)
    why = why_failed(outcome.value, result.error, result.cause)
    times = "1 failure" if result.failures == 1 else f"{result.failures} failures"
    return JobFailed(
        f"job {result.job_id} is a dead letter after {times} ({outcome.value}): {why}",
        outcome=outcome,
        error=error,
        cause=result.cause,
    )
