"""One slot in the calling thread, for whoever waits for its jobs: a test, or a person with a debugger."""

from __future__ import annotations

import asyncio
import bdb
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from pgworker.app.app import App
from pgworker.app.queue.postgres import PostgresQueue
from pgworker.lifecycle.settle import Ended
from pgworker.linux import fork
from pgworker.linux.row import BoardRow
from pgworker.model.state import Outcome
from pgworker.worker.execution import Execution, ProgressUpdates, Slot, SlotTransactions, take_progress
from pgworker.worker.loop import end_left_behind
from pgworker.worker.transaction import JobTransactions
from pgworker.worker.transaction_async import AsyncJobTransactions

_HEARD_WITHIN = 0.25
"""Seconds within which the loop hears of a signal."""


class Foreground:
    """Runs one job after the other, async ones on a loop of its own. No monitor, no master: nobody ends a handler."""

    def __init__(self, app: App, state: SimpleNamespace, application_name: str) -> None:
        self.tasks = dict(app.tasks)
        self.progress: ProgressUpdates = {}
        """What running jobs say of how far they are."""
        self._app = app
        self._state = state
        name = f"{application_name} transaction"
        self._transactions = SlotTransactions(JobTransactions(app.dsn, name), AsyncJobTransactions(app.dsn, name))
        self._loop = asyncio.new_event_loop()
        self._generation = fork.generation

    def slot(self, row: BoardRow, lease_ttl: float) -> Slot:
        """What executions shown in this row of a board are made with, under leases of so many seconds."""
        return Slot(0, row, self._transactions, self._state, self.progress, self._app.org_config, lease_ttl)

    def run(self, execution: Execution, queue: PostgresQueue) -> tuple[Ended, BaseException | None]:
        """Run a handler to its end, and tell `queue` what to record; what it raised comes back.

        What is meant for whoever waits (Ctrl-C, the end of a test, of a debugger) is raised, and `queue` told nothing.
        """
        ended, error = self._call(execution)
        self.pass_on_progress(queue)
        execution.tell_of_transaction(ended)
        if execution.is_settled:
            queue.succeeded_itself(execution.claimed)
        elif execution.is_lost:
            queue.lost(execution.claimed)
        elif ended.outcome is Outcome.SUCCEEDED:
            queue.succeed(execution.claimed, ended)
        else:
            queue.fail(execution.claimed, ended)
        return ended, error

    def pass_on_progress(self, queue: PostgresQueue) -> None:
        """Tell `queue` what jobs have said and nobody has taken yet."""
        for said in take_progress(self.progress):
            queue.progress(*said)

    def close(self) -> None:
        run = self._loop.run_until_complete
        try:
            self._transactions.sync.close()
            run(self._transactions.on_loop.close())
            run(end_left_behind())
            run(self._loop.shutdown_asyncgens())
            run(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def _call(self, execution: Execution) -> tuple[Ended, BaseException | None]:
        try:
            if execution.claimed.task.is_async:
                with self._awake():
                    returned = self._loop.run_until_complete(execution.call_async())
            else:
                returned = execution.call()
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if _leaves_debugger(error):
                raise
            return execution.failed(error), error
        except BaseException:
            fork.leave_if_forked(self._generation)
            self._loop.run_until_complete(end_left_behind())  # the handler itself, if its loop was interrupted
            raise
        else:
            return execution.returned(returned), None
        finally:
            fork.leave_if_forked(self._generation)
            execution.end()
            self._transactions.sync.reset()
            self._loop.run_until_complete(self._transactions.on_loop.reset())

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Inside, the loop wakes up now and then. Python hears of a signal that came right before a wait when that is
        over, and the handler may wait for hours."""
        self._wake_again()
        try:
            yield
        finally:
            self._timer.cancel()

    def _wake_again(self) -> None:
        self._timer = self._loop.call_later(_HEARD_WITHIN, self._wake_again)


def _leaves_debugger(error: BaseException) -> bool:
    """Whether somebody has quit pdb: BdbQuit, since Python 3.14 a SystemExit out of its own code."""
    if isinstance(error, bdb.BdbQuit):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else str(last.tb_frame.f_globals.get("__name__"))
    return isinstance(error, SystemExit) and module == "pdb"
