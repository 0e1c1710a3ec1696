"""A registered handler: callable as before, enqueueable, and what a worker runs.

    charge(ctx, 42)                                    calls the plain function
    charge.enqueue(42)                                 stores a job, on a connection of the App's
    charge.using(conn).enqueue(42)                     ... in the transaction of conn
    charge.options(priority=9, org_id="acme").job(42)  an unsent job, for app.enqueue_many

`using` and `options` go together, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import update_wrapper
from types import CoroutineType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload
from uuid import UUID

from msgspec import UNSET, UnsetType

from pgworker.app.arguments import Arguments
from pgworker.app.context import Context
from pgworker.app.handle import JobHandle
from pgworker.app.middleware import Call, Middleware, wrapped
from pgworker.app.options import TaskOptions, job_delay, job_options
from pgworker.app.orgs import OrgRules, refuse_job_without_org, refuse_request_without_org
from pgworker.app.producer import Producer
from pgworker.app.returns import Returns
from pgworker.app.scope import enter_job, leave_job, run_in_job, scope_here
from pgworker.app.targets import Target, check_target
from pgworker.errors import InvalidJob, InvalidPayload
from pgworker.model import exact
from pgworker.model.dead_letter import DeadLetter
from pgworker.model.job import Job, JobRequest

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
Awaited = TypeVar("Awaited")
Returned = TypeVar("Returned")


@dataclass(frozen=True, slots=True)
class Sender:
    """How the jobs of a task are made and where they go, if nothing else is said."""

    arguments: Arguments
    producer: Producer
    orgs: OrgRules


class Enqueuer(Generic[P, R]):
    """A task with options and a place to go: enqueues any number of jobs. Immutable."""

    def __init__(
        self,
        sender: Sender,
        template: JobRequest,
        target: Target | None = None,
        chosen: frozenset[str] = frozenset(),
        delay: timedelta | None = None,
    ) -> None:
        """`chosen` are the options that were set for the job: of those it inherits nothing. `delay`, if there is one,
        goes before the `run_at` of the template."""
        self._sender = sender
        self._template = template
        self._target = target
        self._chosen = chosen
        self._delay = delay

    def using(self, target: Target) -> Enqueuer[P, R]:
        """Enqueue in the transaction of a connection or cursor of psycopg, synchronous or not, or of what holds one: a
        session or connection of SQLAlchemy, `django.db.connection`. TypeError for anything else."""
        check_target(target)
        return Enqueuer(self._sender, self._template, target, self._chosen, self._delay)

    def options(
        self,
        *,
        queue: str | UnsetType = UNSET,
        priority: int | UnsetType = UNSET,
        run_at: datetime | UnsetType | None = UNSET,
        delay: float | timedelta | UnsetType | None = UNSET,
        max_attempts: int | UnsetType = UNSET,
        timeout: float | timedelta | UnsetType | None = UNSET,
        org_id: str | UnsetType | None = UNSET,
        headers: Mapping[str, Any] | UnsetType | None = UNSET,
        id: UUID | UnsetType | None = UNSET,  # noqa: A002  the name of the column
    ) -> Enqueuer[P, R]:
        """The same with other options than the task's; what was set before stays. InvalidJob for values that can't be.

        `priority` 0 to 9, 9 first · `run_at` aware, not before then ·
        `delay` in seconds or a timedelta, not before so long after `job` or `enqueue` is called, by this host's clock;
        it takes the place of a `run_at` that was set before, and the other way round; both at once are refused ·
        `timeout` in seconds or a timedelta, None: none ·
        `org_id` and `headers` instead of those that the job would inherit, None: none ·
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
        waits = self._delay
        if delay is not UNSET:
            waits = job_delay(delay)
            if given.setdefault("run_at", None) is not None and waits is not None:
                raise InvalidJob("run_at and delay exclude each other: the one is a time, the other so long from now")
        elif "run_at" in given:
            waits = None
        return Enqueuer(self._sender, self._template._replace(**given), self._target, self._chosen.union(given), waits)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobRequest:
        """The job, unsent, with the org and headers of here and now. TypeError if the arguments don't fit the task,
        InvalidPayload if they can't be stored or decoded, InvalidJob if it lacks an org that the App requires."""
        return self._request(self._sender.arguments.encode(args, kwargs))

    def _request(self, payload: str) -> JobRequest:
        template, scope, chosen = self._template, scope_here(), self._chosen
        org_id = template.org_id if "org_id" in chosen else scope.org_id
        if self._sender.orgs.is_required:
            refuse_request_without_org(template.task, org_id)
        return JobRequest(
            task=template.task,
            payload=payload,
            queue=template.queue,
            priority=template.priority,
            run_at=template.run_at if self._delay is None else datetime.now(timezone.utc) + self._delay,
            max_attempts=template.max_attempts,
            timeout=template.timeout,
            org_id=org_id,
            headers=template.headers if "headers" in chosen else scope.headers,
            id=template.id,
        )

    @overload
    def enqueue(
        self: Enqueuer[P, Coroutine[Any, Any, Awaited]], *args: P.args, **kwargs: P.kwargs
    ) -> JobHandle[Awaited]: ...
    @overload
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]: ...
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[Any]:
        """Store the job and return its handle. Errors as of `job`, and those of the database."""
        return self._sender.producer.enqueue(self.job(*args, **kwargs), self._target)

    @overload
    async def enqueue_async(
        self: Enqueuer[P, Coroutine[Any, Any, Awaited]], *args: P.args, **kwargs: P.kwargs
    ) -> JobHandle[Awaited]: ...
    @overload
    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]: ...
    async def enqueue_async(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[Any]:
        """As `enqueue`; on an asynchronous connection, or in a thread if none was named."""
        return await self._sender.producer.enqueue_async(self.job(*args, **kwargs), self._target)

    @overload
    def enqueue_many(
        self: Enqueuer[P, Coroutine[Any, Any, Awaited]], arguments: Iterable[Mapping[str, Any]]
    ) -> list[JobHandle[Awaited]]: ...
    @overload
    def enqueue_many(self, arguments: Iterable[Mapping[str, Any]]) -> list[JobHandle[R]]: ...
    def enqueue_many(self, arguments: Iterable[Mapping[str, Any]]) -> list[JobHandle[Any]]:
        """Store a job for each of these arguments, by name, all of them or none, and return their handles in order.

        The quickest way to enqueue many. They have the options, the org and the headers of here and now in common. What
        the arguments hold must not change before it returns.
        Errors as of `enqueue`, with the place of the arguments, counted from 0; InvalidJob for the option `id`.
        """
        template, payloads = self._alike(arguments)
        return self._sender.producer.enqueue_alike(template, payloads, self._target)

    @overload
    async def enqueue_many_async(
        self: Enqueuer[P, Coroutine[Any, Any, Awaited]], arguments: Iterable[Mapping[str, Any]]
    ) -> list[JobHandle[Awaited]]: ...
    @overload
    async def enqueue_many_async(self, arguments: Iterable[Mapping[str, Any]]) -> list[JobHandle[R]]: ...
    async def enqueue_many_async(self, arguments: Iterable[Mapping[str, Any]]) -> list[JobHandle[Any]]:
        """As `enqueue_many`; on an asynchronous connection, or in a thread if none was named."""
        template, payloads = self._alike(arguments)
        return await self._sender.producer.enqueue_alike_async(template, payloads, self._target)

    def _alike(self, arguments: Iterable[Mapping[str, Any]]) -> tuple[JobRequest, Iterator[str]]:
        """What the jobs have in common, and their payloads, made when they are asked for.

        The caller's iterator is run here, as it must not be while a transaction is open. What it yields is copied: it
        may be one dict, changed each time.
        """
        template = self._request("{}")
        if template.id is not None:
            raise InvalidJob("the option id is that of one job: enqueue this one by itself, or let the server make ids")
        copied: list[dict[str, Any]] = []
        for named in arguments:
            copied.append(named.copy() if type(named) is dict else _by_name(named, len(copied)))
        return template, self._payloads(copied)

    def _payloads(self, arguments: Sequence[dict[str, Any]]) -> Iterator[str]:
        encode, place = self._sender.arguments.encode, 0
        try:
            for place, named in enumerate(arguments):  # noqa: B007  it is for the error
                yield encode((), named)
        except InvalidPayload as error:
            raise InvalidPayload(_placed(error, place)) from error
        except TypeError as error:
            raise TypeError(_placed(error, place)) from error


def _by_name(arguments: object, place: int) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return dict(arguments)
    wrong = f"arguments are a mapping of names to values, not {exact.type_name(arguments)}"
    raise TypeError(_placed(wrong, place))


def _placed(problem: object, place: int) -> str:
    return f"{problem} (arguments number {place}, counted from 0)"


class AddHook(Protocol):
    """How an App registers the dead-letter hook of one of its tasks."""

    def __call__(self, task: Task[..., Any], function: Callable[..., Any], /) -> Task[..., Any]: ...


class Task(Enqueuer[P, R]):
    """A handler under its name. Made by `@app.task` and `app.register`.

    `P` are the arguments that a job has, so without the Context; `R` is what the handler returns, of an async one what
    it awaits to.
    """

    def __init__(
        self,
        name: str,
        call: Callable[..., R],
        options: TaskOptions,
        sender: Sender,
        add_hook: AddHook,
        *,
        takes_job: bool = False,
    ) -> None:
        """`takes_job`: `call` is the method `handle(job, ctx)` of an object."""
        super().__init__(
            sender,
            JobRequest(name, "{}", options.queue, options.priority, None, options.max_attempts, options.timeout),
        )
        update_wrapper(self, call, updated=())
        self.name = name
        self.queue = options.queue
        self.priority = options.priority
        self.max_attempts = options.max_attempts
        self.timeout = options.timeout
        self.backoff = options.backoff
        self.discard_on = options.discard_on
        self.should_retry = options.should_retry
        self.is_async = sender.arguments.is_async
        self.needs_context = True
        """Whether a worker must bring a Context: the handler takes one, or somebody around it does."""
        self._call = call
        self._add_hook = add_hook
        self._handle = _handling_job(call) if takes_job else _handling_arguments(call, sender.arguments)
        self._run = self._handle
        self.wrap(())
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

    @property
    def dsn(self) -> str:
        """Where its jobs are stored if no connection is named: that of its App."""
        return self._sender.producer.dsn

    @overload
    def on_dead_letter(
        self, function: Callable[[Context, DeadLetter], Returned], /
    ) -> Task[[DeadLetter], Returned]: ...
    @overload
    def on_dead_letter(self, function: Callable[[DeadLetter], Returned], /) -> Task[[DeadLetter], Returned]: ...
    def on_dead_letter(self, function: Callable[..., Any], /) -> Task[..., Any]:
        """Call `function(dead)`, or `function(ctx, dead)`, as a job of its own when a job of this task is given up.

        It is the task `NAME:dead_letter` on the same queue, its job made in the transaction that gives the other up.
        RegistrationError: there is a hook already, this is one, or `function` doesn't take a DeadLetter.
        """
        return self._add_hook(self, function)

    def wrap(self, layers: Sequence[Middleware]) -> None:
        """Call the handler inside these from now on, the first outermost. RegistrationError: one of them can't."""
        forms = [layer.form(self.name, of_async=self.is_async) for layer in layers]
        run = wrapped(self._handle, forms, of_async=self.is_async)
        requires_org = self._sender.orgs.is_required
        self._run = _requiring_org(run) if requires_org else run
        self.needs_context = self._sender.arguments.takes_context or bool(layers) or requires_org

    def decode(self, payload_json: str) -> dict[str, Any]:
        """Arguments of a stored payload, by annotation, with defaults; msgspec.ValidationError if they don't fit."""
        return self._sender.arguments.decode(payload_json)

    def invoke(self, payload_json: str, context: Context | None, make_job: Callable[[], Job]) -> Any:
        """Call the handler on a stored payload. `context` may be None unless `needs_context`; not for async ones.

        Whatever the handler raises comes through; so does `decode`'s error, an ordinary failure of the job. Contextvars
        that it sets end with it, and jobs that it enqueues inherit from its own.
        """
        result: object = copy_context().run(run_in_job, self._run, payload_json, context, make_job)
        if type(result) is CoroutineType:  # a decorator hid it when the task was registered
            raise _unawaited(self.name, result)
        return result

    async def invoke_async(self, payload_json: str, context: Context | None, make_job: Callable[[], Job]) -> Any:
        """As `invoke`, for async handlers; contextvars that it sets end with the asyncio task."""
        token = enter_job(make_job)
        try:
            result: object = await self._run(payload_json, context, make_job)
        finally:
            leave_job(token)
        if type(result) is CoroutineType:
            raise _unawaited(self.name, result)
        return result


def _handling_arguments(call: Callable[..., Any], arguments: Arguments) -> Call:
    decode = arguments.decode
    if arguments.takes_context:
        return lambda payload, context, _make_job: call(context, **decode(payload))
    return lambda payload, _context, _make_job: call(**decode(payload))


def _handling_job(handle: Callable[[Job, Context], Any]) -> Call:
    return lambda _payload, context, _make_job: handle(context.job, context)


def _requiring_org(run: Call) -> Call:
    def guarded(payload: str, context: Context, make_job: Callable[[], Job]) -> Any:
        refuse_job_without_org(context.job)
        return run(payload, context, make_job)

    return guarded


def _unawaited(name: str, coroutine: CoroutineType[Any, Any, Any]) -> TypeError:
    coroutine.close()
    return TypeError(
        f"{name} returned a coroutine, which nobody awaits: make the function itself, and what decorates it, "
        "`async def`, or await it there"
    )
