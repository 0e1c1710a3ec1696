"""The App: which tasks there are, and the connections that their jobs are enqueued through when no other is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Concatenate, Protocol, TypeVar, overload
from uuid import UUID

from pgworker.app.arguments import Arguments, free_arguments, typed_arguments
from pgworker.app.callables import is_async
from pgworker.app.connections import Connections
from pgworker.app.context import Context
from pgworker.app.dead_letters import hook_arguments, hook_declaration, hook_name, hook_options
from pgworker.app.handle import JobHandle, Jobs
from pgworker.app.hooks import WorkerHooks
from pgworker.app.middleware import Middleware, middleware
from pgworker.app.options import ShouldRetry, check_org, task_options
from pgworker.app.orgs import Org, OrgConfig, OrgRules, org_rules, refuse_request_without_org
from pgworker.app.producer import Producer
from pgworker.app.queue.open_queue import open_queue
from pgworker.app.queue.postgres import Queue
from pgworker.app.registration import check_handler, check_name, default_name, refuse_what_is_no_function
from pgworker.app.scope import org_scope
from pgworker.app.signatures import read_signature
from pgworker.app.targets import Target
from pgworker.app.task import P, R, Sender, Task
from pgworker.config.layers import Sources, dsn_of_environment, find_dsn
from pgworker.config.sources import accept_dsn
from pgworker.control.queues import pause_queues, resume_queues
from pgworker.errors import ConfigurationError, InvalidFilter, RegistrationError
from pgworker.lifecycle.cancel import CancelCounts, cancel_jobs
from pgworker.lifecycle.dead_letter_hooks import DeadLetterHook
from pgworker.lifecycle.purge import purge_queue
from pgworker.model import exact
from pgworker.model.durations import seconds
from pgworker.model.job import DEFAULT_PRIORITY, DEFAULT_QUEUE, Job, JobRequest
from pgworker.model.payload import decode
from pgworker.model.retry import DEFAULT_MAX_ATTEMPTS, DEFAULT_TIMEOUT, Backoff
from pgworker.model.selection import JobFilter

_DEFAULT_BACKOFF = Backoff()

Around = TypeVar("Around", bound=Callable[[Job, Context, Any], Any])
Hook = TypeVar("Hook", bound=Callable[[Any], None])


class Handler(Protocol):
    """An object that handles the jobs of one task. Its arguments are in `job.payload`, by name."""

    @property
    def name(self) -> str: ...
    def handle(self, job: Job, ctx: Context, /) -> Any: ...


class Registrar(Protocol):
    """What `@app.task(...)` with options is: a decorator of functions with and without a Context."""

    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class App:
    """The tasks of an application, each under its name.

    `dsn` is what libpq takes, or `embedded:DIR`; without it PGWORKER_DSN, PGWORKER_DSN_FILE or DATABASE_URL, or what
    pgworker.toml says, read at first use. Nothing is connected before a job is enqueued without a connection.

    `require_org`: a job without an org can't be enqueued, and is given up if SQL or another app has enqueued it.
    `org_config`: a function of an org's id, whose answer is `ctx.org.config`. ConfigurationError for anything else.
    """

    def __init__(
        self, dsn: str | None = None, *, require_org: bool = False, org_config: OrgConfig | None = None
    ) -> None:
        self._given_dsn = dsn
        self._dsn_of_files: str | None = None
        self._orgs = org_rules(require_org, org_config)
        self._tasks: dict[str, Task[..., Any]] = {}
        self._dead_letter_hooks: dict[str, DeadLetterHook] = {}
        self._middleware: list[Middleware] = []
        self._hooks = WorkerHooks()
        self._connections = Connections(lambda: self.dsn)
        self._jobs = Jobs(self._connections, self._read_result)
        self._producer = Producer(self._connections, self._jobs)

    @property
    def dsn(self) -> str:
        """Where the jobs are. ConfigurationError if nothing says so."""
        if self._given_dsn is not None:
            return accept_dsn(self._given_dsn, "the App's dsn")
        found = dsn_of_environment(os.environ) or self._dsn_of_files
        if found is None:
            found = self._dsn_of_files = find_dsn(Sources(os.environ, Path()), is_strict=False)
        if found is None:
            raise ConfigurationError(
                "no database is named: set PGWORKER_DSN (or DATABASE_URL), or write App(dsn=...); "
                "`embedded:DIR` means the private server in DIR"
            )
        return found

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks by name, to read only."""
        return MappingProxyType(self._tasks)

    @property
    def org_config(self) -> OrgConfig | None:
        """What a Context asks for the config of its org."""
        return self._orgs.config

    @property
    def dead_letter_hooks(self) -> tuple[DeadLetterHook, ...]:
        """What a worker declares to the database when it starts."""
        return tuple(self._dead_letter_hooks.values())

    @overload
    def task(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        backoff: Backoff = _DEFAULT_BACKOFF,
        discard_on: tuple[type[BaseException], ...] = (),
        should_retry: ShouldRetry | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Registrar: ...
    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        backoff: Backoff = _DEFAULT_BACKOFF,
        discard_on: tuple[type[BaseException], ...] = (),
        should_retry: ShouldRetry | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Any:
        """Register a function as a task: `@app.task`, or `@app.task(queue="mail", ...)`.

        `name` is by default the module's and the function's. `timeout` is in seconds or a timedelta, None: none. At its
        end the handler is asked to stop, and killed if it goes on for the pool's graces: 15 s unless the pool says
        otherwise, 20 s on the event loop.
        An Exception in `discard_on`, or for which `should_retry(job, error)` is false, is not retried.
        RegistrationError: the name is taken or can't be one, an option can't be, or the function can't be called from
        a payload.
        """
        options = task_options(
            queue=queue,
            max_attempts=max_attempts,
            timeout=timeout,
            backoff=backoff,
            discard_on=discard_on,
            should_retry=should_retry,
            priority=priority,
        )

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            refuse_what_is_no_function(function)
            own_name = check_name(default_name(function) if name is None else name)
            arguments = typed_arguments(read_signature(function, own_name), own_name)
            return self._add(Task(own_name, function, options, self._sender(arguments), self._add_dead_letter_hook))

        return register if function is None else register(function)

    def register(
        self,
        handler: Handler,
        *,
        queue: str = DEFAULT_QUEUE,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: float | timedelta | None = DEFAULT_TIMEOUT,
        backoff: Backoff = _DEFAULT_BACKOFF,
        discard_on: tuple[type[BaseException], ...] = (),
        should_retry: ShouldRetry | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Task[..., Any]:
        """Register an object with `name` and `handle(job, ctx)`, async or not, as a task; the rest as of `task`."""
        options = task_options(
            queue=queue,
            max_attempts=max_attempts,
            timeout=timeout,
            backoff=backoff,
            discard_on=discard_on,
            should_retry=should_retry,
            priority=priority,
        )
        name = check_handler(handler)
        sender = self._sender(free_arguments(name, is_async=is_async(handler.handle)))
        return self._add(Task(name, handler.handle, options, sender, self._add_dead_letter_hook, takes_job=True))

    @overload
    def middleware(self, function: Around, /) -> Around: ...
    @overload
    def middleware(
        self, function: None = None, /, *, twin: Callable[[Job, Context, Any], Any] | None = None
    ) -> Callable[[Around], Around]: ...
    def middleware(self, function: Any = None, /, *, twin: Callable[[Job, Context, Any], Any] | None = None) -> Any:
        """Run `function(job, ctx, call_next)` around every handler of the app, the first registered outermost.

        It returns what `call_next()` returns, or something else; it may raise what a handler may; it calls `call_next`
        at most once. A plain function wraps plain tasks, an `async def`, which awaits `call_next()`, async ones; an app
        with both gives the other form as `twin`. RegistrationError: it can't wrap one of the tasks.
        """

        def register(function: Around) -> Around:
            layer = middleware(function, twin)
            for task in self._tasks.values():  # all of them before the first is wrapped
                layer.form(task.name, of_async=task.is_async)
            self._middleware.append(layer)
            for task in self._tasks.values():
                task.wrap(self._middleware)
            return function

        return register if function is None else register(function)

    def on_worker_start(self, hook: Hook, /) -> Hook:
        """Run `hook(state)` in each worker process before its first job; what it puts there is at `ctx.state`.

        If it raises, the worker ends. RegistrationError: it is async, or doesn't take the state alone.
        """
        self._hooks.add_start(hook)
        return hook

    def on_worker_stop(self, hook: Hook, /) -> Hook:
        """Run `hook(state)` in each worker process after its last job, the last registered first. Errors as above."""
        self._hooks.add_stop(hook)
        return hook

    def use_dsn(self, dsn: str) -> None:
        """From now on the jobs are there, whatever the App was made with; a worker says where its own come from."""
        self._given_dsn = dsn

    def start_worker(self) -> SimpleNamespace:
        """Run the start hooks, in order; their state. ConfigurationError, which says where, for one that raises."""
        return self._hooks.start()

    def stop_worker(self, state: SimpleNamespace) -> None:
        """Run the stop hooks. One that raises is logged."""
        self._hooks.stop(state)

    @contextmanager
    def org(self, org_id: str) -> Iterator[Org]:
        """Jobs that are enqueued inside, by any App, are for this org, unless their options say otherwise.

        A contextvar: it follows `await` and `asyncio.to_thread`, not threads that were there before. InvalidJob for
        an id that can't be one.
        """
        org = Org(check_org(org_id), self._orgs.config)
        with org_scope(org.id):
            yield org

    def enqueue_many(self, requests: Iterable[JobRequest], connection: Target | None = None) -> list[JobHandle[Any]]:
        """Store jobs, a thousand per statement, and return their handles in order.

        All of them or none, in the transaction of `connection`, whatever `task.using` takes, or in one of its own.
        InvalidJob for a job that PostgreSQL refuses, or that lacks an org which the app requires.
        """
        return self._producer.enqueue_many(self._requests(requests), connection)

    async def enqueue_many_async(
        self, requests: Iterable[JobRequest], connection: Target | None = None
    ) -> list[JobHandle[Any]]:
        """As `enqueue_many`; on an asynchronous connection, or in a thread if none is named."""
        return await self._producer.enqueue_many_async(self._requests(requests), connection)

    def job(self, job_id: UUID | str) -> JobHandle[Any]:
        """A handle for the job with this id. Whether there is one is asked by its methods.

        JobNotFound for a string that is no UUID. `wait()` returns plain JSON: which task it is of is not known here.
        """
        return self._jobs.named(job_id)

    def cancel(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        org_id: str | None = None,
        older_than: float | timedelta | None = None,
        waiting: bool = True,
        running: bool = True,
    ) -> CancelCounts:
        """Cancel all jobs that have in common what is named here; how many waited, and how many were asked to stop.

        `older_than`: enqueued longer ago, in seconds or a timedelta. InvalidFilter if nothing is named.
        """
        age = None if older_than is None else seconds(older_than, "older_than", error=InvalidFilter)
        chosen = JobFilter(queue=queue, task=task, org_id=org_id, older_than=age, waiting=waiting, running=running)
        with self._connections.connection() as connection:
            return cancel_jobs(connection, chosen)

    def pause(self, *queues: str) -> set[str]:
        """Let no pool start jobs of these queues, from the next claim on; those that were not paused before."""
        with self._connections.statement() as connection:
            return pause_queues(connection, queues)

    def resume(self, *queues: str) -> set[str]:
        """Let them go on, and wake who serves them; those that were paused."""
        with self._connections.statement() as connection:
            return resume_queues(connection, queues)

    def purge(self, queue: str, *, task: str | None = None, org_id: str | None = None) -> int:
        """Cancel what waits in a queue, scheduled jobs too; how many there were."""
        with self._connections.connection() as connection:
            return purge_queue(connection, queue, task=task, org_id=org_id)

    def queue(self, *queues: str, lease_ttl: float | timedelta = 60.0) -> AbstractContextManager[Queue]:
        """The queue as a worker sees it, for one thread, on a connection of its own: claim, succeed, fail.

        `queues` in strict order, by default those of the app's tasks; only jobs of these tasks are claimed. A lease
        lasts `lease_ttl` (seconds or a timedelta), and nobody renews it. At the end of the block, an error or not, what
        has ended is recorded, and what has not goes back to the queue, uncharged.
        ConfigurationError for a lease of under a second, and for an app without tasks; InvalidJob for the name of a
        queue that can't be one.
        """
        return open_queue(self.dsn, queues, self.tasks, seconds(lease_ttl, "lease_ttl", error=ConfigurationError))

    def close(self) -> None:
        """Close the App's own connections, if there are any. The next use opens them again.

        Whoever waits for a job in this process gets AppClosed.
        """
        self._jobs.results.close()
        self._connections.close()

    def _requests(self, given: Iterable[JobRequest]) -> list[JobRequest]:
        requests = list(given)
        for request in requests:
            if not isinstance(request, JobRequest):
                raise TypeError(f"enqueue_many takes jobs as made by task.job(...), not {exact.type_name(request)}")
            if self._orgs.is_required:
                refuse_request_without_org(request.task, request.org_id)
        return requests

    def _read_result(self, task: str | None, text: str | None) -> Any:
        known = self._tasks.get(task) if task else None
        if known is not None:
            return known.read_result(text)
        return None if text is None else decode(text)

    def _add(self, task: Task[..., Any]) -> Task[..., Any]:
        if task.name in self._tasks:
            raise RegistrationError(f"a task named {task.name} is registered already; pass another one with name=...")
        task.wrap(self._middleware)
        self._tasks[task.name] = task
        return task

    def _sender(self, arguments: Arguments) -> Sender:
        return Sender(arguments, self._producer, self._orgs)

    def _add_dead_letter_hook(self, task: Task[..., Any], function: Callable[..., Any], /) -> Task[..., Any]:
        name = check_name(hook_name(task.name))
        if isinstance(function, Task):
            raise RegistrationError(
                f"{function.name} is a task already; write a function of its own, which may call it"
            )
        if name in self._tasks:
            raise RegistrationError(f"{task.name} has a dead-letter hook already; call both functions in one")
        # A job may have died of having no org: its hook must run all the same.
        sender = Sender(hook_arguments(function, name), self._producer, OrgRules(False, self._orgs.config))
        options = hook_options(task.queue, task.priority)
        hook = self._add(Task(name, function, options, sender, self._add_dead_letter_hook))
        self._dead_letter_hooks[task.name] = hook_declaration(task.name, name, options)
        return hook
