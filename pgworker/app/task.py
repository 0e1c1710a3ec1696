"""A registered handler: callable as before, enqueueable, and what a worker runs.

    charge(ctx, 42)                                    calls the plain function
    charge.enqueue(42)                                 stores a job, on a connection of the App's
    charge.using(conn).enqueue(42)                     ... in the transaction of conn
    charge.options(priority=9, org_id="acme").job(42)  an unsent job, for app.enqueue_many

`using` and `options` go together, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import update_wrapper
from types import CoroutineType
from typing import Any, Generic, ParamSpec, TypeVar, overload
from uuid import UUID

from msgspec import UNSET, UnsetType

from pgworker.app.arguments import Arguments
from pgworker.app.context import Context
from pgworker.app.handle import JobHandle
from pgworker.app.options import TaskOptions, job_options
from pgworker.app.producer import Producer
from pgworker.app.returns import Returns
from pgworker.app.targets import Target, check_target
from pgworker.model.job import Job, JobRequest
from pgworker.model.payload import encode_payload

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
Awaited = TypeVar("Awaited")


class Enqueuer(Generic[P, R]):
    """A task with options and a place to go: enqueues any number of jobs. Immutable."""

    def __init__(
        self, arguments: Arguments, producer: Producer, template: JobRequest, target: Target | None = None
    ) -> None:
        self._arguments = arguments
        self._producer = producer
        self._template = template
        self._target = target

    def using(self, target: Target) -> Enqueuer[P, R]:
        """Enqueue in the transaction of a connection or cursor of psycopg, synchronous or not, or of what holds one: a
        session or connection of SQLAlchemy, `django.db.connection`. TypeError for anything else."""
        check_target(target)
        return Enqueuer(self._arguments, self._producer, self._template, target)

    def options(
        self,
        *,
        queue: str | UnsetType = UNSET,
        priority: int | UnsetType = UNSET,
        run_at: datetime | UnsetType | None = UNSET,
        max_attempts: int | UnsetType = UNSET,
        timeout: float | timedelta | UnsetType | None = UNSET,
        org_id: str | UnsetType | None = UNSET,
        headers: Mapping[str, Any] | UnsetType | None = UNSET,
        id: UUID | UnsetType | None = UNSET,  # noqa: A002  the name of the column
    ) -> Enqueuer[P, R]:
        """The same with other options than the task's; what was set before stays. InvalidJob for values that can't be.

        `priority` 0 to 9, 9 first · `run_at` aware, not before then · `timeout` in seconds or a timedelta, None: none ·
        `id` a UUIDv7 of your own, which makes a second enqueue of the same job fail.
        """
        all_options = {
            "queue": queue,
            "priority": priority,
            "run_at": run_at,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "org_id": org_id,
            "headers": headers,
            "id": id,
        }
        given = job_options({name: value for name, value in all_options.items() if value is not UNSET})
        return Enqueuer(self._arguments, self._producer, replace(self._template, **given), self._target)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobRequest:
        """The job, unsent. TypeError if the arguments don't fit the task, InvalidPayload if they can't be stored."""
        payload = encode_payload(self._arguments.bind(args, kwargs)).decode()
        return replace(self._template, payload=payload)

    @overload
    def enqueue(
        self: Enqueuer[P, Coroutine[Any, Any, Awaited]], *args: P.args, **kwargs: P.kwargs
    ) -> JobHandle[Awaited]: ...
    @overload
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]: ...
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[Any]:
        """Store the job and return its handle. Errors as of `job`, and those of the database."""
        return self._producer.enqueue([self.job(*args, **kwargs)], self._target)[0]

    @overload
    async def enqueue_async(
        self: Enqueuer[P, Coroutine[Any, Any, Awaited]], *args: P.args, **kwargs: P.kwargs
    ) -> JobHandle[Awaited]: ...
    @overload
    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]: ...
    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[Any]:
        """As `enqueue`; on an asynchronous connection, or in a thread if none was named."""
        return (await self._producer.enqueue_async([self.job(*args, **kwargs)], self._target))[0]


class Task(Enqueuer[P, R]):
    """A handler under its name. Made by `@app.task` and `app.register`.

    `P` are the arguments that a job has, so without the Context; `R` is what the handler returns.
    """

    def __init__(
        self,
        name: str,
        call: Callable[..., R],
        options: TaskOptions,
        arguments: Arguments,
        producer: Producer,
        *,
        takes_job: bool = False,
    ) -> None:
        """`takes_job`: `call` is the method `handle(job, ctx)` of an object."""
        template = JobRequest(name, "{}", options.queue, options.priority, None, options.max_attempts, options.timeout)
        super().__init__(arguments, producer, template)
        update_wrapper(self, call, updated=())
        self.name = name
        self.queue = options.queue
        self.priority = options.priority
        self.max_attempts = options.max_attempts
        self.timeout = options.timeout
        self.backoff = options.backoff
        self.discard_on = options.discard_on
        self.should_retry = options.should_retry
        self.takes_context = arguments.takes_context
        self._call = call
        self._takes_job = takes_job
        self.read_result: Callable[[str | None], Any] = Returns(call).read

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, context: Context, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, *args: Any, **kwargs: Any) -> R:  # type: ignore[misc]  # it does take a context before P
        """Call the handler, here and now. One that takes a Context gets it from the caller, first."""
        return self._call(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def decode(self, payload_json: str) -> dict[str, Any]:
        """Arguments of a stored payload, by annotation, with defaults; msgspec.ValidationError if they don't fit."""
        return self._arguments.decode(payload_json)

    def invoke(self, payload_json: str, context: Context | None, make_job: Callable[[], Job]) -> Any:
        """Run the handler on a stored payload. `context` may be None unless `takes_context`.

        Whatever the handler raises comes through; so does `decode`'s error, an ordinary failure of the job.
        """
        if self._takes_job:
            return self._call(make_job(), context)
        arguments = self._arguments.decode(payload_json)
        result: object = self._call(context, **arguments) if self.takes_context else self._call(**arguments)
        if type(result) is CoroutineType:  # a decorator hid it when the task was registered
            result.close()
            raise TypeError(
                f"{self.name} returned a coroutine, which nobody awaits; return what asyncio.run() makes of it"
            )
        return result
