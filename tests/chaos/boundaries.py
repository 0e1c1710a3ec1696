"""The boundaries of pgworker: which failpoints there are, and how they come around the driver and a few functions.

They are derived. Each statement of `pgworker/sql/queries` has three: nothing was sent; it was sent, and nothing read;
it was read. Each verb that is a transaction of several statements has three around its commit, and so has each kind of
transaction that a settle can be in. Only the boundaries that are no statements are listed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from importlib.resources import files
from pkgutil import resolve_name
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import psycopg._cursor_base  # the one layer that sync and async have in common: generators, run by either
from psycopg import generators
from psycopg._connection_base import BaseConnection
from psycopg._cursor_base import BaseCursor
from psycopg._pipeline_base import BasePipeline
from psycopg.pq.abc import PGconn, PGresult

from pgworker.lifecycle.settle import Next
from pgworker.sql.load import query
from tests.chaos.failpoints import ACTIONS, ON_CONNECTIONS, Reach

Steps = Generator[Any, Any, Any]

STATEMENTS = tuple(
    sorted(file.name.removesuffix(".sql") for file in (files("pgworker.sql") / "queries").iterdir() if file.is_file())
)

LITERALS: Mapping[str, str] = {
    "select pgworker.schema_version()": "check_schema",
    "listen pgworker": "listen",
    "discard all": "discard_all",
}
"""Statements that are too short for a file, and matter."""

_BEGINS = {
    "select pg_catalog.pg_try_advisory_lock_shared(": "sleep_lock",
    "select pg_catalog.pg_advisory_unlock_shared(": "sleep_unlock",
    "select set_config('idle_in_transaction_session_timeout',": "begin_transaction",
}

VERBS: Mapping[str, str] = {
    "claim_jobs": "claim",
    "settle_jobs": "settle",
    "save_progress": "progress",
    "release_jobs": "release",
    "renew_leases": "renew",
    "take_lease": "reclaim",
    "lock_leases_of_job": "cancel",
    "cancel_matching_jobs": "cancel_many",
    "lock_lease": "cancel_many",
    "requeue_dead_letters": "requeue",
    "hasten_matching_jobs": "hasten",
    "enqueue_job": "enqueue",
    "enqueue_jobs": "enqueue",
    "enqueue_many": "enqueue",
    "declare_dead_letter_hooks": "declare",
    "make_partition": "partition",
    "watch_expired_partitions": "prune",
    "drop_expired_partitions": "prune",
}
"""What a transaction is, by a statement in it."""

SETTLES: Mapping[str, str] = {
    "trip": "settles and claims",
    "retry": "settles a failure that goes back to the queue",
    "bury": "settles a failure that becomes a dead letter",
    "transaction": "is a handler's own, ctx.transaction()",
    "transaction_async": "is a handler's own, ctx.transaction_async()",
}
"""What a transaction with a settle in it is besides."""

FUNCTIONS: Mapping[str, str] = {
    "boot_check": "pgworker.cli.boot:check",
    "load_app": "pgworker.worker.main:load_app",
    "start_hooks": "pgworker.app.app:App.start_worker",
    "stop_hooks": "pgworker.app.app:App.stop_worker",
    "handler": "pgworker.worker.execution:Execution.call",
    "handler_async": "pgworker.worker.execution:Execution.call_async",
    "finish_run": "pgworker.worker.runner:Runner._finish",
    "reset_transaction": "pgworker.worker.transaction:JobTransactions.reset",
    "reset_transaction_async": "pgworker.worker.transaction_async:AsyncJobTransactions.reset",
    "put_jobs": "pgworker.worker.runner:Runner.put",
    "take_back": "pgworker.worker.runner:Runner.take_back",
    "collect": "pgworker.worker.clerk:Clerk._collect",
    "wake_clerk": "pgworker.worker.alarm:Alarm.wake",
    "give_back": "pgworker.worker.clerk:Clerk._give_back",
    "show_ready": "pgworker.linux.row:BoardRow.set_ready",
    "show_run": "pgworker.linux.row:BoardRow.start_run",
    "hide_run": "pgworker.linux.row:BoardRow.end_run",
    "show_lease": "pgworker.linux.row:BoardRow.show_lease",
    "hide_lease": "pgworker.linux.row:BoardRow.hide_lease",
    "may_start": "pgworker.linux.row:BoardRow.may_start",
    "draw_line": "pgworker.linux.row:BoardRow.draw_line",
    "stamp_renewal": "pgworker.linux.row:BoardRow.stamp_renewal",
    "ask_cancel": "pgworker.linux.row:BoardRow.ask_cancel",
    "fork_worker": "pgworker.master.children:Forker.fork_worker",
    "fork_monitor": "pgworker.master.children:Forker.fork_monitor",
    "reap": "pgworker.master.main:reap",
    "bury_worker": "pgworker.master.main:Master._bury_worker",
    "bury_monitor": "pgworker.master.main:Master._bury_monitor",
    "report_death": "pgworker.master.deaths:Deaths.report",
    "note_death": "pgworker.monitor.reclaims:Reclaims.note",
    "record_deaths": "pgworker.monitor.reclaims:Reclaims.record_deaths",
    "acknowledge_death": "pgworker.master.deaths:Deaths.acknowledge",
    "look_at_board": "pgworker.monitor.reclaims:Witness.look",
    "see_orphans_end": "pgworker.monitor.main:Monitor._see_orphans_end",
    "serve": "pgworker.monitor.main:Monitor.run",
    "serve_pages": "pgworker.monitor.http:Pages.serve_in_thread",
    "wake_workers": "pgworker.monitor.wakeups:Wakeups.wake",
    "begin_drain": "pgworker.master.drain:Drain.begin",
    "drain_worker": "pgworker.master.children:WorkerChild.drain",
    "finish_pool": "pgworker.master.main:Master._finish",
}
"""Boundaries that are no statements: before and after a function. What is named by its user is replaced there."""

_LOOKS = "an operator looks, and changes nothing"
UNREACHED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("count_ahead", "count_arrivals", "count_failures", "count_matching_jobs", "count_workers", "find_claim"),
            *("find_dead_letter", "find_dead_letters", "find_job", "find_last_end", "find_line", "find_pauses"),
            *(
                "find_progress",
                "find_queues",
                "find_servers",
                "list_dead_letters",
                "list_executions",
                "list_failures",
                "list_given_up",
            ),
            *("list_jobs", "list_waiting_jobs", "list_workers", "read_clock", "read_schema_version", "read_status"),
        ),
        _LOOKS,
    ),
    "claim_job": "only `pgworker jobs run` and the drain of tests claim one job by its id: neither is a pool",
    "sleep_unlock": "all workers must be busy for more than two seconds, and the jobs of a round are shorter than that",
}
"""Statements and functions that a pool and its producers never come to, and why."""

_OF_A_STATEMENT = {"before": "nothing is sent", "sent": "it is sent, nothing is read", "after": "its answer is read"}
_OF_A_COMMIT = {
    "before_commit": "all but the commit is done",
    "commit_sent": "the commit is sent, its answer not read",
    "after_commit": "the commit is known",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A place that can be armed."""

    name: str
    meaning: str
    has_connection: bool

    @property
    def actions(self) -> tuple[str, ...]:
        """What can be done there."""
        return tuple(action for action in ACTIONS if self.has_connection or action not in ON_CONNECTIONS)


def _points() -> Iterator[Point]:
    for statement in (*STATEMENTS, *LITERALS.values(), *_BEGINS.values()):
        for step, meaning in _OF_A_STATEMENT.items():
            yield Point(f"{statement}.{step}", f"statement: {meaning}", has_connection=True)
    for verb in sorted({*VERBS.values(), *SETTLES}):
        for step, meaning in _OF_A_COMMIT.items():
            said = SETTLES.get(verb, f"is a {verb}")
            yield Point(f"{verb}.{step}", f"transaction that {said}: {meaning}", has_connection=True)
    yield Point("connect.before", "a connection is to be made", has_connection=False)
    yield Point("connect.after", "a connection is made", has_connection=True)
    for name, target in FUNCTIONS.items():
        for step in ("before", "after"):
            yield Point(f"{name}.{step}", f"{step} {target.partition(':')[2]}", has_connection=False)


POINTS: Mapping[str, Point] = {point.name: point for point in _points()}


REPLACED = (
    *FUNCTIONS.values(),
    *(f"psycopg._cursor_base:BaseCursor.{name}" for name in ("_execute_gen", "_execute_send", "_send_query_prepared")),
    *(f"psycopg._pipeline_base:BasePipeline.{name}" for name in ("_exit_gen", "_fetch_gen", "_process_results")),
    *(f"psycopg._connection_base:BaseConnection.{name}" for name in ("_exec_command", "_connect_gen")),
    *("psycopg._cursor_base:execute", "psycopg.generators:execute"),
)
"""Whatever `put_around_everything` replaces."""


def put_around_everything(reach: Reach) -> None:
    """Have this process and its children call `reach` at every point. For the life of the process."""
    Driver(reach).put()
    for name, target in FUNCTIONS.items():
        owner, attribute = find(target)
        setattr(owner, attribute, _around(getattr(owner, attribute), name, reach))


def find(target: str) -> tuple[Any, str]:
    """The class or module of a function, and its name there."""
    owner, _, attribute = target.rpartition("." if "." in target.partition(":")[2] else ":")
    return resolve_name(owner), attribute


def _around(function: Callable[..., Any], name: str, reach: Reach) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        reach(f"{name}.before")
        returned = function(*args, **kwargs)
        reach(f"{name}.after")
        return returned

    @wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        reach(f"{name}.before")
        returned = await function(*args, **kwargs)
        reach(f"{name}.after")
        return returned

    return call_async if inspect.iscoroutinefunction(function) else call


@dataclass(slots=True)
class _Transaction:
    """What a connection has sent since its last commit."""

    is_open: bool = False
    """By a BEGIN; else it commits by itself."""
    kinds: set[str] = field(default_factory=set)
    syncing: tuple[str, ...] = ()
    """The kinds of an implicit transaction whose end is on its way."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What is being sent: the names that its points begin with, and how they end."""

    names: tuple[str, ...]
    ends: tuple[str, str, str] = ("before", "sent", "after")


_COMMIT_ENDS = ("before_commit", "commit_sent", "after_commit")
_NOTHING = _Step(())


class Driver:
    """The points around psycopg's statements and commits."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._names = {query(name): name for name in STATEMENTS} | dict(LITERALS)
        self._transactions: WeakKeyDictionary[BaseConnection[Any], _Transaction] = WeakKeyDictionary()
        self._queued: dict[int, _Step] = {}
        """By cursor: what is in a pipeline and not answered yet."""
        self._sending: dict[int, _Step] = {}
        """By connection: what is handed to libpq and not flushed yet."""

    def put(self) -> None:
        """Replace the driver's own."""
        self._put_around_statements()
        self._put_around_commits()
        self._put_between_sending_and_reading()
        self._put_around_pipelines()
        self._put_around_connecting()

    # -- what is replaced

    def _put_around_statements(self) -> None:
        driver, execute = self, BaseCursor._execute_gen
        hand_over = BaseCursor._execute_send
        hand_over_prepared = BaseCursor._send_query_prepared

        def execute_gen(cursor: Any, statement: Any, params: Any = None, **options: Any) -> Steps:
            connection = cursor._conn
            step = driver._note(connection, statement, params)
            driver._come(step, 0, cursor._pgconn)
            driver._queued[id(cursor)] = step
            yield from execute(cursor, statement, params, **options)
            if connection._pipeline:
                driver._come(step, 1, cursor._pgconn)
            else:
                driver._queued.pop(id(cursor), None)
                driver._forget_if_committed(connection)
                driver._come(step, 2, cursor._pgconn)

        def execute_send(cursor: Any, *args: Any, **options: Any) -> None:
            hand_over(cursor, *args, **options)
            driver._hand_over(cursor)

        def send_query_prepared(cursor: Any, *args: Any, **options: Any) -> None:
            hand_over_prepared(cursor, *args, **options)
            driver._hand_over(cursor)

        _replace(BaseCursor, _execute_gen=execute_gen)
        _replace(BaseCursor, _execute_send=execute_send, _send_query_prepared=send_query_prepared)

    def _put_around_commits(self) -> None:
        driver, execute = self, BaseConnection._exec_command

        def exec_command(connection: Any, command: Any, *args: Any, **options: Any) -> Steps:
            text = command.decode() if isinstance(command, bytes) else str(command)
            step = driver._note(connection, text, None, is_drivers=True)
            driver._come(step, 0, connection.pgconn)
            if not connection._pipeline:
                driver._sending[id(connection.pgconn)] = step
            answer = yield from execute(connection, command, *args, **options)
            driver._come(step, 2, connection.pgconn)
            return answer

        _replace(BaseConnection, _exec_command=exec_command)

    def _put_between_sending_and_reading(self) -> None:
        driver = self

        def execute(pgconn: PGconn) -> Steps:
            step = driver._sending.pop(id(pgconn), _NOTHING)
            yield from generators.send(pgconn)
            driver._come(step, 1, pgconn)
            return (yield from generators.fetch_many(pgconn))

        _replace(psycopg._cursor_base, execute=execute)
        _replace(generators, execute=execute)

    def _put_around_pipelines(self) -> None:
        driver, leave, fetch, process = (
            self,
            BasePipeline._exit_gen,
            BasePipeline._fetch_gen,
            BasePipeline._process_results,
        )

        def exit_gen(pipeline: Any) -> Steps:
            transaction = driver._transaction(pipeline._conn)
            kinds = () if transaction.is_open else driver._committing(pipeline._conn, transaction, is_drivers=False)
            step = _Step(kinds, _COMMIT_ENDS)
            driver._come(step, 0, pipeline.pgconn)
            transaction.syncing = step.names
            yield from leave(pipeline)
            driver._come(step, 2, pipeline.pgconn)

        def fetch_gen(pipeline: Any, *, flush: bool) -> Steps:
            transaction = driver._transaction(pipeline._conn)
            syncing, transaction.syncing = transaction.syncing, ()
            driver._come(_Step(syncing, _COMMIT_ENDS), 1, pipeline.pgconn)
            yield from fetch(pipeline, flush=flush)

        def process_results(pipeline: Any, queued: Any, results: list[PGresult]) -> None:
            process(pipeline, queued, results)
            if queued is not None:
                driver._come(driver._queued.pop(id(queued[0]), _NOTHING), 2, pipeline.pgconn)

        _replace(BasePipeline, _exit_gen=exit_gen, _fetch_gen=fetch_gen, _process_results=process_results)

    def _put_around_connecting(self) -> None:
        driver, connect = self, BaseConnection._connect_gen.__func__  # type: ignore[attr-defined]  # a class method

        def connect_gen(cls: Any, conninfo: str = "") -> Steps:
            driver._reach("connect.before")
            connection = yield from connect(cls, conninfo)
            driver._reach("connect.after", connection.pgconn)
            return connection

        _replace(BaseConnection, _connect_gen=classmethod(connect_gen))

    # -- what is going on

    def _note(self, connection: Any, statement: Any, params: Any, *, is_drivers: bool = False) -> _Step:
        """What this statement is; and remember what transaction it is in."""
        text = statement if isinstance(statement, str) else ""
        transaction = self._transaction(connection)
        word = text[:8].lower()
        if word.startswith("begin"):
            transaction.is_open = True
            transaction.kinds.clear()
        elif word.startswith("rollback"):
            if " to " not in text[:12].lower():
                transaction.is_open = False
                transaction.kinds.clear()
        elif word.startswith("commit"):
            kinds, transaction.is_open = self._committing(connection, transaction, is_drivers), False
            return _Step(kinds, _COMMIT_ENDS)
        name = self._name(text)
        if name is None:
            return _NOTHING
        transaction.kinds |= _kinds(name, params)
        return _Step((name,))

    def _committing(self, connection: Any, transaction: _Transaction, is_drivers: bool) -> tuple[str, ...]:
        kinds = set(transaction.kinds)
        transaction.kinds.clear()
        if is_drivers and "settle" in kinds:
            kinds.remove("settle")
            kinds.add("transaction_async" if isinstance(connection, psycopg.AsyncConnection) else "transaction")
        if {"settle", "claim"} <= kinds:
            kinds.add("trip")
        return tuple(sorted(kinds))

    def _name(self, text: str) -> str | None:
        known = self._names.get(text)
        return known or next((name for begin, name in _BEGINS.items() if text.startswith(begin)), None)

    def _hand_over(self, cursor: Any) -> None:
        """The statement itself is on its way to libpq now, and no preparation of it."""
        if not cursor._conn._pipeline:
            self._sending[id(cursor._pgconn)] = self._queued.get(id(cursor), _NOTHING)

    def _forget_if_committed(self, connection: Any) -> None:
        transaction = self._transaction(connection)
        if not transaction.is_open:
            transaction.kinds.clear()

    def _transaction(self, connection: Any) -> _Transaction:
        return self._transactions.setdefault(connection, _Transaction())

    def _come(self, step: _Step, place: int, pgconn: PGconn) -> None:
        for name in step.names:
            self._reach(f"{name}.{step.ends[place]}", pgconn)


def _kinds(statement: str, params: Any) -> set[str]:
    kinds = {VERBS[statement]} if statement in VERBS else set()
    if statement == "settle_jobs" and isinstance(params, Mapping):
        nexts = str(params.get("nexts") or "").strip("{}").split(",")
        kinds |= {"retry"} if str(Next.REQUEUE.value) in nexts else set()
        kinds |= {"bury"} if str(Next.BURY.value) in nexts else set()
    return kinds


def _replace(owner: Any, **replacements: Any) -> None:
    for name, replacement in replacements.items():
        setattr(owner, name, replacement)
