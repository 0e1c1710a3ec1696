"""How long suspects are on trial, and what starts when a trial is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from pgworker import App, Context
from pgworker.app.queue.leases import ClaimedJob, HeldLease
from pgworker.app.task import Task
from pgworker.lifecycle.claim import ClaimedRow
from pgworker.linux.board import Board
from pgworker.linux.row import BoardRow
from pgworker.model.graces import Graces
from pgworker.model.state import Outcome
from pgworker.model.trial import trial
from pgworker.worker.execution import Slot, SlotTransactions
from pgworker.worker.runner import Runner
from pgworker.worker.transaction import JobTransactions
from pgworker.worker.transaction_async import AsyncJobTransactions
from tests.process.pool import eventually

NOWHERE = "host=/nowhere"
"""No job here asks for a transaction."""


def test_each_suspicion_makes_the_trial_longer_until_it_outlasts_any_job() -> None:
    seconds = [trial(suspicions) for suspicions in range(30)]
    assert seconds[:4] == [0.0, 0.5, 2.0, 8.0]
    assert seconds == sorted(seconds)
    assert seconds[8] > 1800.0, "longer than the timeout of a task that says nothing"
    assert seconds[-1] * 1e9 < 2**62, "fits into a word of the board"


def test_what_waits_behind_a_trial_starts_when_its_time_is_over_though_the_suspect_runs_on() -> None:
    app, started, gate = App(), set[str](), Event()

    @app.task(name="hold")
    def hold(name: str) -> None:
        started.add(name)
        gate.wait(30)

    row = Board(1, lanes=1, slots=3).rows[0]
    with running(app, row) as runner:
        runner.put(claimed(row, app.tasks["hold"], suspicions=1, names=("suspect", "second", "third")))
        eventually(lambda: started == {"suspect"}, "the suspect runs")

        def others_start() -> bool:
            runner.end_trial()
            return started == {"suspect", "second", "third"}

        eventually(others_start, "the others start")
        gate.set()
        eventually(lambda: len(runner.finished) == 3, "the end of all")


class Fleeting(Runner):
    """Whoever is on trial in it ends right after somebody has looked."""

    _found: Slot | None = None

    @property
    def _on_trial(self) -> Slot | None:
        found, self._found = self._found, None
        return found

    @_on_trial.setter
    def _on_trial(self, slot: Slot | None) -> None:
        self._found = slot


class Contended:
    """A lock that another thread had a moment before: it has done `meanwhile`."""

    def __init__(self, lock: AbstractContextManager[bool], meanwhile: Callable[[], None]) -> None:
        self._lock = lock
        self._meanwhile = meanwhile

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._meanwhile()

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)


def test_a_trial_that_ends_while_the_clerk_looks_is_no_bug_of_the_clerk() -> None:
    runner = Fleeting(App(), Board(1, lanes=1, slots=2).rows[0], Graces(1.0, 1.0, 60.0), unused(2), SimpleNamespace())
    runner._put_on_trial(runner._slots[0], suspicions=20)
    assert runner.trial_left > 0.0
    assert runner.trial_left == 0.0


def test_the_end_of_a_trial_is_not_that_of_the_next_one() -> None:
    runner = Runner(App(), Board(1, lanes=1, slots=2).rows[0], Graces(1.0, 1.0, 60.0), unused(2), SimpleNamespace())
    first, second = runner._slots
    runner._on_trial = first  # its time is over
    runner._lock = Contended(runner._lock, lambda: runner._put_on_trial(second, suspicions=20))  # type: ignore[assignment]
    runner.end_trial()
    assert runner.trial_left > 0.0


def test_what_has_finished_knows_its_context_no_more_which_knows_its_arguments() -> None:
    """Each would keep the other until the next cyclic collection."""
    app = App()

    @app.task(name="look")
    def look(ctx: Context, name: str) -> None:
        assert ctx.job.payload == {"name": name}

    @app.task(name="look_async")
    async def look_async(ctx: Context, name: str) -> None:
        assert ctx.job.payload == {"name": name}

    row = Board(1, lanes=1, slots=2).rows[0]
    with running(app, row) as runner:
        for task in ("look", "look_async"):
            runner.put(claimed(row, app.tasks[task], suspicions=0, names=("first", "second")))
        eventually(lambda: len(runner.finished) == 4, "the end of all")
        assert {ended.outcome for _, ended in runner.finished} == {Outcome.SUCCEEDED}
        eventually(lambda: not any(execution.context for execution, _ in runner.finished), "all are let go of")


@contextmanager
def running(app: App, row: BoardRow) -> Iterator[Runner]:
    runner = Runner(app, row, Graces(1.0, 1.0, 60.0), unused(row.slots), SimpleNamespace())
    thread = Thread(target=runner.run_jobs, args=[lambda _starves: None])
    thread.start()
    try:
        yield runner
    finally:
        runner.stop()
        thread.join()


def unused(slots: int) -> list[SlotTransactions]:
    return [
        SlotTransactions(JobTransactions(NOWHERE, "test"), AsyncJobTransactions(NOWHERE, "test")) for _ in range(slots)
    ]


def claimed(row: BoardRow, task: Task[..., Any], *, suspicions: int, names: tuple[str, ...]) -> list[ClaimedJob]:
    """Jobs of one lease, of which the first is suspected."""
    now, lease_id = bytes(8), uuid4()
    rows = [
        ClaimedRow(
            uuid4(), task.name, f'{{"name": "{name}"}}', 1, 0, now, "default", 5, None, 25, None, None, now, None, 0.0,
            0 if place else suspicions,
        )
        for place, name in enumerate(names)
    ]  # fmt: skip
    claimed_ns = time.monotonic_ns()
    entry = row.show_lease(lease_id, len(rows), claimed_ns)
    lease = HeldLease(lease_id, entry, len(rows), claimed_ns=claimed_ns, rows=rows)
    return [ClaimedJob(lease, position, job, task) for position, job in enumerate(rows, 1)]
