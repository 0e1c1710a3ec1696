"""The runner: calls handlers, in as many slots as the worker has.

It takes claimed jobs from one deque, in order, and puts what became of them into another; the clerk fills the one and
empties the other. A job needs a free slot. With one slot, sync handlers run on the main thread; with more, each of
those that run has a thread. Async handlers share one event loop, in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from pgworker.app.app import App
from pgworker.app.queue.leases import ClaimedJob, HeldLease
from pgworker.lifecycle.settle import Ended
from pgworker.linux import fork
from pgworker.linux.row import BoardRow
from pgworker.model.graces import Graces
from pgworker.model.lease import lease_margin
from pgworker.model.trial import trial
from pgworker.worker.crash import A_BUG, crash
from pgworker.worker.execution import Execution, ProgressUpdates, Slot, SlotTransactions, log
from pgworker.worker.loop import EventLoop


class Runner:
    """Runs what is put into `todo`; puts what became of it into `finished`, or into `refused` what it may not start."""

    def __init__(
        self,
        app: App,
        row: BoardRow,
        graces: Graces,
        transactions: Sequence[SlotTransactions],
        state: SimpleNamespace,
    ) -> None:
        """One of `transactions` for each slot of `row`; `state` is what the start hooks of `app` made."""
        self.todo: deque[ClaimedJob] = deque()
        self.finished: deque[tuple[Execution, Ended]] = deque()
        self.refused: deque[ClaimedJob] = deque()
        self.progress: ProgressUpdates = {}
        """What running jobs say of how far they are; taken by the clerk."""
        self._row = row
        self._slots = [
            Slot(index, row, own, state, self.progress, app.org_config, graces.lease_ttl)
            for index, own in enumerate(transactions)
        ]
        self._start_within_ns = int((graces.lease_ttl - lease_margin(graces.lease_ttl)) * 1e9)
        self._lock = threading.Lock()  # taken as such: the condition's own methods are Python, and cost 0.2 µs a job
        self._arrived = threading.Condition(self._lock)
        self._free = self._slots[::-1]
        self._on_trial: Slot | None = None
        self._stopping = False
        self._logs_starts = False
        self._generation = fork.generation
        self._closed: HeldLease | None = None
        self._wake: Callable[[bool], None] = lambda _starves: None
        self._loop: EventLoop | None = None
        if any(task.is_async for task in app.tasks.values()):
            self._loop = EventLoop(self, graces)
        self._has_only_async = all(task.is_async for task in app.tasks.values())
        self.started_ns = 0
        """When a job was last started, by the monotonic clock."""

    # -- called by the clerk

    def put(self, jobs: list[ClaimedJob]) -> None:
        self._logs_starts = log.isEnabledFor(logging.DEBUG)
        with self._lock:
            self.todo.extend(jobs)
            self._arrived.notify(len(jobs))
        if self._loop is not None:
            self._loop.ring()

    def take_back(self) -> list[ClaimedJob]:
        """Everything that has not been started, out of the runner's reach."""
        with self._lock:
            unstarted = [*self.todo, *self.refused]
            self.todo.clear()
            self.refused.clear()
        return unstarted

    def stop(self) -> None:
        """Return from `run_jobs` as soon as nothing is left to do."""
        with self._lock:
            self._stopping = True
            self._arrived.notify_all()
        if self._loop is not None:
            self._loop.ring()

    @property
    def free(self) -> int:
        """Slots in which nothing runs."""
        return len(self._free)

    @property
    def trial_left(self) -> float:
        """Seconds during which nothing is started, unless the job that is on trial ends before."""
        suspect = self._on_trial  # once: its thread ends the trial with the job
        return 0.0 if suspect is None else max(0.0, (suspect.trial_until_ns - time.monotonic_ns()) / 1e9)

    def end_trial(self) -> None:
        """Start what waits behind a trial whose time is over."""
        if self._on_trial is None or self.trial_left:
            return
        with self._lock:
            if self.trial_left:  # the next one's, which began meanwhile
                return
            self._on_trial = None
            self._arrived.notify_all()
        if self._loop is not None:
            self._loop.ring()

    @property
    def is_idle(self) -> bool:
        return len(self._free) == self._row.slots and not self.todo

    # -- the threads

    def run_jobs(self, wake: Callable[[bool], None]) -> None:
        """Run jobs until `stop`. `wake(starves)` is called after each; `starves`: a slot is free, and nothing to do."""
        self._wake = wake
        self._generation = fork.generation
        if self._loop is not None:
            self._loop.start()
        if self._row.slots == 1 or self._has_only_async:
            self._run_sync_jobs()
        else:
            threads = [
                threading.Thread(target=self._run_sync_jobs, name=f"slot {slot}") for slot in range(self._row.slots)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self._loop is not None:
            self._loop.join()
        for slot in self._slots:
            slot.transactions.sync.close()

    def _run_sync_jobs(self) -> None:
        freed: Slot | None = None
        try:
            while (execution := self._wait_for_sync(freed)) is not None:
                freed = execution.slot
                self._run(execution)
        except Exception:  # noqa: BLE001 - what handlers raise ends in their execution
            crash(log, f"a thread of the worker failed: {A_BUG}", with_traceback=True)

    def _wait_for_sync(self, freed: Slot | None) -> Execution | None:
        """Give back the slot of the last job; the next job in a slot, not yet begun, or None at the end."""
        with self._lock:
            self._give_back_slot(freed)
            while (execution := self._take(is_async=False)) is None:
                if self.has_stopped:
                    return None
                self._wake(True)
                self._arrived.wait()
            if self._free and self.todo:
                self._wake_next()
            return execution

    def take_async(self, freed: Slot | None) -> Execution | None:
        """As `_wait_for_sync`, without the wait; `run_async` starts the job."""
        with self._lock:
            self._give_back_slot(freed)
            execution = self._take(is_async=True)
            if execution is None:
                self._wake(True)
            return execution

    def _give_back_slot(self, freed: Slot | None) -> None:
        if freed is not None:
            if self._on_trial is freed:
                self._on_trial = None
            self._free.append(freed)

    @property
    def has_stopped(self) -> bool:
        return self._stopping and not self.todo

    def _take(self, *, is_async: bool) -> Execution | None:
        """The next job in a slot, if it is one for a thread, or for the loop; else whose it is is told."""
        while self.todo and self._free:
            claimed = self.todo[0]
            if claimed.task.is_async is not is_async:
                self._wake_next()
                return None
            if self._on_trial is not None and self.trial_left:
                self._wake(False)
                return None
            self.todo.popleft()
            if self._may_start(claimed):
                slot = self._free.pop()
                if claimed.row.suspicions and self._row.slots > 1:
                    self._put_on_trial(slot, claimed.row.suspicions)
                return Execution(claimed, slot)
            self.refused.append(claimed)
            self._wake(False)
        return None

    def _put_on_trial(self, slot: Slot, suspicions: int) -> None:
        """The last worker died, perhaps of this job: nothing is started beside it for a while, so that it is known if
        this worker dies of it, too. Nobody here waits for the end of that time: the clerk gives back what can't start,
        or calls `end_trial`."""
        slot.trial_until_ns = time.monotonic_ns() + int(trial(suspicions) * 1e9)
        self._on_trial = slot

    def _wake_next(self) -> None:
        """Whoever runs the next job: the loop, or a thread that waits. There is one for every free slot."""
        if self._loop is not None and self.todo[0].task.is_async:
            self._loop.ring()
        else:
            self._arrived.notify()

    def _may_start(self, claimed: ClaimedJob) -> bool:
        lease = claimed.lease
        if lease is self._closed:  # one position refused, all after it refused: a lease is run in order
            return False
        if self._row.may_start(lease.entry, claimed.position, time.monotonic_ns() - self._start_within_ns):
            return True
        self._closed = lease
        return False

    # -- one job

    def _start(self, execution: Execution) -> None:
        execution.start()
        self.started_ns = execution.started_ns
        if self._logs_starts:
            execution.log_start()

    def _run(self, execution: Execution) -> None:
        self._start(execution)
        try:
            returned = execution.call()
            fork.leave_if_forked(self._generation, 0)
            ended = execution.returned(returned)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises ends this execution, nothing else
            fork.leave_if_forked(self._generation)
            ended = execution.failed(error)
        self._finish(execution, ended)
        if execution.context is not None:
            execution.slot.transactions.sync.reset()
            execution.context = None  # each knows the other: arguments would stay until the next cyclic collection

    async def run_async(self, execution: Execution) -> None:
        self._start(execution)
        try:
            returned = await execution.call_async()
            fork.leave_if_forked(self._generation, 0)
            ended = execution.returned(returned)
        except BaseException as error:  # noqa: BLE001 - likewise; a CancelledError is the loop's, or the handler's own
            fork.leave_if_forked(self._generation)
            ended = execution.failed(error)
        self._finish(execution, ended)
        if execution.context is not None:
            await execution.slot.transactions.on_loop.reset()
            execution.context = None  # as above

    def _finish(self, execution: Execution, ended: Ended) -> None:
        execution.end()
        if execution.is_settled or execution.is_lost:
            execution.tell_of_transaction(ended)
        self.finished.append((execution, ended))
        self._wake(False)

    async def close_async(self) -> None:
        """Close what belongs to the event loop."""
        for slot in self._slots:
            await slot.transactions.on_loop.close()
