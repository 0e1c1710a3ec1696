"""Run due jobs in this process, one after the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from psycopg import Connection

from pgworker.app.app import App
from pgworker.app.leases import ClaimedJob
from pgworker.app.queue import PostgresQueue
from pgworker.db.connect import connect_to_schema
from pgworker.inspection.queues import count_queues
from pgworker.lifecycle.claim import Lanes
from pgworker.lifecycle.dead_letters import declare_hooks
from pgworker.lifecycle.settle import Ended
from pgworker.linux.board import Board, Row
from pgworker.model.job import Job
from pgworker.model.payload import decode
from pgworker.model.state import Outcome
from pgworker.worker.execution import Execution, Sayings, SlotTransactions
from pgworker.worker.transaction import JobTransactions
from pgworker.worker.transaction_async import AsyncJobTransactions

LEASE_TTL = 3600.0
"""Seconds: nobody renews these leases, and a debugger may stop a handler for long."""

_NAME = "pgworker drain"


@dataclass(frozen=True, slots=True)
class Ran:
    """One execution: of which job, how it ended, what the handler returned (as stored) or raised."""

    job: Job
    outcome: Outcome
    result: Any
    error: BaseException | None


def drain(app: App, *, queues: Sequence[str] = (), limit: int = 1000) -> list[Ran]:
    """Run the jobs that are due, and those that they enqueue, until none is left; what ran, in order.

    `queues`: all that have jobs, unless named here, in strict order. What is due later (`run_at`, a retry after its
    backoff) stays. The hooks of workers run too. Deadlines and cancel requests are a pool's: a handler that never ends
    never ends here.
    AssertionError after `limit` executions: jobs that enqueue each other would go on for ever. RuntimeError in an
    event loop: use `drain_async`.
    """
    _refuse_running_loop()
    ran: list[Ran] = []
    state = app.start_worker()
    try:
        with connect_to_schema(app.dsn, application_name=_NAME, prepare_threshold=None) as connection:
            declare_hooks(connection, list(app.tasks), app.dead_letter_hooks)
            worker = _Worker(app, connection, state)
            try:
                while more := worker.run(queues or _queues(app, connection), limit - len(ran)):
                    ran += more
            finally:
                worker.close()
    finally:
        app.stop_worker(state)
    return ran


async def drain_async(app: App, *, queues: Sequence[str] = (), limit: int = 1000) -> list[Ran]:
    """As `drain`, for tests that run in an event loop: in a thread, with a loop of its own."""
    return await asyncio.to_thread(drain, app, queues=queues, limit=limit)


class _Worker:
    """What a worker of a pool is, without the pool: no monitor renews its leases, no master watches its deadlines."""

    def __init__(self, app: App, connection: Connection[Any], state: SimpleNamespace) -> None:
        self._app = app
        self._connection = connection
        self._state = state
        self._transactions = SlotTransactions(
            JobTransactions(app.dsn, f"{_NAME} transaction"), AsyncJobTransactions(app.dsn, f"{_NAME} transaction")
        )
        self._loop = asyncio.new_event_loop()

    def run(self, queues: Sequence[str], limit: int) -> list[Ran]:
        """Run what is due in these queues until nothing is."""
        lanes = Lanes.of(queues)
        board = Board(1, len(lanes))
        [row] = board.rows
        row.reset(uuid4(), 0)
        queue = PostgresQueue(
            lambda: self._connection,
            row=row,
            floors=board.floors,
            lanes=lanes,
            tasks=self._app.tasks,
            lease_ttl=LEASE_TTL,
        )
        ran: list[Ran] = []
        while jobs := queue.claim(1):
            if len(ran) == limit:
                queue.keep_only_started(jobs)
                queue.give_back()
                raise AssertionError(f"drain has run as many jobs as its limit, and there are more: {jobs[0].job()}")
            ran.append(self._run(jobs[0], queue, row))
        return ran

    def close(self) -> None:
        self._transactions.sync.close()
        self._loop.run_until_complete(self._transactions.on_loop.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _run(self, claimed: ClaimedJob, queue: PostgresQueue, row: Row) -> Ran:
        tasks = dict(self._app.tasks)
        is_async = tasks[claimed.row.task].is_async
        row.show_started(claimed.lease.entry, claimed.position)
        sayings: Sayings = {}
        thread = 0 if is_async else threading.get_ident()
        execution = Execution(claimed, row, 0, thread, self._transactions, self._state, sayings, self._app.org_config)
        error: BaseException | None = None
        try:
            if is_async:
                ended = execution.succeeded(self._loop.run_until_complete(execution.call_async(tasks)))
            else:
                ended = execution.succeeded(execution.call(tasks))
        except Exception as raised:  # noqa: BLE001 - as in a worker; what ends a test run (Ctrl-C) ends this one too
            error = raised
            ended = execution.failed(raised, tasks)
        execution.end()
        for said in sayings.values():
            queue.progress(*said)
        self._transactions.sync.reset()
        self._loop.run_until_complete(self._transactions.on_loop.reset())
        if execution.is_settled:
            queue.succeeded_itself(claimed)
            return Ran(claimed.job(), Outcome.SUCCEEDED, None, error)
        if ended.outcome is Outcome.SUCCEEDED:
            queue.succeed(claimed, ended)
        else:
            queue.fail(claimed, ended)
        return Ran(claimed.job(), ended.outcome, _result(ended), error)


def _queues(app: App, connection: Connection[Any]) -> list[str]:
    """Those of the tasks, and those in which jobs wait."""
    waiting = [counts.queue for counts in count_queues(connection)]
    return sorted({task.queue for task in app.tasks.values()} | set(waiting))


def _result(ended: Ended) -> Any:
    return None if ended.result is None else decode(ended.result)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("drain() would block the event loop that this test runs in: `await drain_async(app)`")
