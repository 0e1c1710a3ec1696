"""The event loop of a worker, in a thread of its own: all its async handlers run on it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol

from pgworker.model.graces import Graces
from pgworker.model.state import CancelReason
from pgworker.observe.logs import logger
from pgworker.worker.crash import A_BUG, crash
from pgworker.worker.execution import Execution, Slot

_LOOK = 0.05
"""Seconds between two looks at the cancel flags, which are words in shared memory that nothing can wait for."""

_LAST_WORDS = 1.0
"""Seconds for tasks that handlers have left behind, when the worker ends."""

log = logger("worker.loop")


class Jobs(Protocol):
    """Where the loop gets its jobs from."""

    @property
    def has_stopped(self) -> bool:
        """Whether there will be no more."""

    def take_async(self, freed: Slot | None) -> Execution | None:
        """Give back a slot; the next job in one, not yet begun."""

    def run_async(self, execution: Execution) -> Coroutine[Any, Any, None]:
        """Run it to its end."""

    async def close_async(self) -> None:
        """Close what belongs to the loop."""


class EventLoop:
    """Runs jobs from `start` until the jobs have stopped and the last one has ended."""

    def __init__(self, jobs: Jobs, graces: Graces) -> None:
        self._jobs = jobs
        self._graces = graces
        self._running: dict[Execution, asyncio.Task[None]] = {}
        self._asked_ns: dict[Execution, int] = {}
        self._thread = threading.Thread(target=self._work, name="event loop")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_news = asyncio.Event()
        self._is_up = threading.Event()
        self._is_told = False

    def start(self) -> None:
        self._thread.start()
        self._is_up.wait()

    def join(self) -> None:
        self._thread.join()

    def ring(self) -> None:
        """There may be something to do. Called from any thread."""
        loop = self._loop
        if loop is not None and not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):  # closed a moment ago: there is nothing to do
                loop.call_soon_threadsafe(self._pump)

    def _work(self) -> None:
        """Not by asyncio.run: it waits for ever for a task that a handler has left behind and that can't be cancelled,
        and when a handler stops the loop it goes on to cancel the others."""
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._serve())
        except BaseException:  # noqa: BLE001  whatever a handler has done to it
            crash(
                log,
                "a handler has stopped the event loop, or cancelled what is not its own; the worker is replaced",
                with_traceback=True,
            )
        loop.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_up.set()
        while self._running or not self._jobs.has_stopped:
            if self._running:
                await asyncio.sleep(_LOOK)
                self._cancel_the_deaf()
            else:
                await self._has_news.wait()
                self._has_news.clear()
        self._loop = None
        await self._jobs.close_async()
        await end_left_behind()

    def _pump(self) -> None:
        self._is_told = False
        self._has_news.set()
        self._take(None)

    def _take(self, freed: Slot | None) -> None:
        while (execution := self._jobs.take_async(freed)) is not None:
            freed = None
            self._running[execution] = asyncio.get_running_loop().create_task(self._run(execution))

    async def _run(self, execution: Execution) -> None:
        try:
            await self._jobs.run_async(execution)
            del self._running[execution]
            self._asked_ns.pop(execution, None)
            self._take(execution.slot)
        except BaseException:  # noqa: BLE001 - what handlers raise ends in their execution
            crash(log, f"a thread of the worker failed: {A_BUG}", with_traceback=True)

    def _cancel_the_deaf(self) -> None:
        """Who was flagged long enough ago and still runs has its task cancelled, once. Only what runs is flagged."""
        now_ns = time.monotonic_ns()
        for execution, task in self._running.items():
            reason = execution.reason
            if reason is CancelReason.NONE or execution.has_ended:
                continue
            asked_ns = self._asked_ns.setdefault(execution, now_ns)
            if asked_ns and now_ns - asked_ns >= self._graces.before_cancel_ns(reason):
                self._asked_ns[execution] = 0
                task.cancel()


async def end_left_behind() -> None:
    """Cancel the tasks that handlers have left behind, and wait a little for their last words."""
    left_behind = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left_behind:
        task.cancel()
    if left_behind:
        await asyncio.wait(left_behind, timeout=_LAST_WORDS)
