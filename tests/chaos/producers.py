"""Those who stand outside: producers that enqueue and cancel, and an operator who does what operators do."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from pgworker.app.handle import JobHandle
from pgworker.control.queues import pause_queues, resume_queues
from pgworker.errors import PgworkerError
from pgworker.lifecycle.cancel import cancel_job
from pgworker.lifecycle.dead_letters import list_dead_letters, requeue_dead_letters
from pgworker.model.job import JobRequest
from pgworker.model.state import CancelAnswer
from tests.chaos import app as tasks
from tests.chaos.evidence import ACKED, ASKED, CANCELLED, PLAN, ROLLED_BACK, Ledger
from tests.chaos.plan import QUEUES

Connect = Callable[[], Connection[Any]]
Enqueue = Callable[[Connection[Any]], list[JobHandle[Any]]]

ORGS = (None, None, None, "acme", "globex")
_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.InternalError,
    psycopg.errors.ReadOnlySqlTransaction,
)
"""How a database is away. The driver has an InternalError for the server's farewell right after the reply to COMMIT."""

_CHANCES: dict[str, float] = {
    "plain": 50,
    "plain_async": 14,
    "effect": 12,
    "effect_async": 5,
    "effect_parent": 3,
    "fail": 6,
    "snooze": 3,
    "say": 4,
    "obey": 0.5,
    "hold_gil": 0.1,
    "crash": 0.1,
    "hang": 0.05,
}


class Actor:
    """Somebody with a thread, dice and a connection of his own, who comes back whenever the database does."""

    def __init__(self, connect: Connect, dice: random.Random, is_over: threading.Event) -> None:
        self._connect = connect
        self._dice = dice
        self._is_over = is_over
        self._connection: Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self.error: BaseException | None = None
        """What ended it before its time."""

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for its end. AssertionError if it does not end, or ended by an error."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self._thread.name} has not ended within {seconds:g} s"
        if self.error is not None:
            raise AssertionError(f"{self._thread.name} ended by {self.error!r}") from self.error

    def act(self, connection: Connection[Any]) -> None:
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        return False

    def _run(self) -> None:
        try:
            while not self._is_over.is_set() and not self.is_done:
                self._try()
        except BaseException as error:  # noqa: BLE001  told by join
            self.error = error
        finally:
            self._drop()

    def _try(self) -> None:
        try:
            self.act(self._connected())
        except _AWAY:
            self._drop()
            self._is_over.wait(0.1)

    def _connected(self) -> Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


class Producer(Actor):
    """Enqueues up to `jobs` jobs of every kind in transactions of its own, while no more than `backlog` wait."""

    def __init__(
        self,
        connect: Connect,
        dice: random.Random,
        is_over: threading.Event,
        *,
        ledger: Ledger,
        jobs: int | None,
        first_key: int,
        backlog: int,
        waiting: Callable[[], int],
    ) -> None:
        super().__init__(connect, dice, is_over)
        self._ledger = ledger
        self._left = jobs
        self._key = first_key
        self._backlog = backlog
        self._waiting = waiting
        self.recent: list[UUID] = []
        """The jobs that were enqueued last."""
        self.acked = 0
        """How many were."""

    @property
    def is_done(self) -> bool:
        return self._left is not None and self._left <= 0

    def act(self, connection: Connection[Any]) -> None:
        if self._waiting() >= self._backlog:
            self._is_over.wait(0.05)
            return
        jobs = self._dice.choice([1, 1, 2, 10, 100, 300])
        if self._left is not None:
            jobs = min(jobs, self._left)
        keys = range(self._key, self._key + jobs)
        self._key += jobs
        enqueue = self._alike(keys) if self._dice.random() < 0.2 else self._mixed(keys)
        self._ledger.note_all([(PLAN, key) for key in keys])
        if self._dice.random() < 0.1:
            with connection.transaction(force_rollback=True):
                handles = enqueue(connection)
                self._ledger.note_all([(ROLLED_BACK, handle.id) for handle in handles])
            return
        with connection.transaction():
            handles = enqueue(connection)
        self._ledger.note_all([(ACKED, key, handle.id) for key, handle in zip(keys, handles, strict=True)])
        self.recent = [handle.id for handle in handles]
        self.acked += jobs
        if self._left is not None:
            self._left -= jobs

    def _alike(self, keys: Iterable[int]) -> Enqueue:
        task = tasks.app.tasks["plain"].options(queue=self._dice.choice(QUEUES), org_id=self._dice.choice(ORGS))
        arguments = [{"key": key} for key in keys]
        return lambda connection: task.using(connection).enqueue_many(arguments)

    def _mixed(self, keys: Iterable[int]) -> Enqueue:
        requests = [self._request(key) for key in keys]
        return lambda connection: tasks.app.enqueue_many(requests, connection)

    def _request(self, key: int) -> JobRequest:
        dice = self._dice
        name = dice.choices(list(_CHANCES), list(_CHANCES.values()))[0]
        task: Any = tasks.app.tasks[name].options(
            queue=dice.choice(QUEUES), priority=dice.choice([5, 5, 5, 0, 9]), org_id=dice.choice(ORGS)
        )
        if name in ("plain", "plain_async", "effect", "effect_async"):
            return task.job(key, dice.choice([0, 0, 0, 0, 0, 0, 0, 0, 1, 10]))  # type: ignore[no-any-return]
        extra = {
            "fail": dice.randint(1, 3),
            "obey": 0.3,
            "hold_gil": 0.2,
            "crash": dice.choice(["kill", "exit", "segfault"]),
        }
        return task.job(key, *([extra[name]] if name in extra else []))  # type: ignore[no-any-return]


class Bystander:
    """Enqueues what faults bring with them, in the books of the producers. Called by any thread."""

    def __init__(self, connect: Connect, *, ledger: Ledger, first_key: int) -> None:
        self._connect = connect
        self._ledger = ledger
        self._keys = itertools.count(first_key)

    def enqueue(self, name: str, *arguments: Sequence[Any], open_for: float = 0.0) -> None:
        """One job for each list of arguments after the key, all in a transaction that stays open for so many seconds.

        What the database is away for is not enqueued.
        """
        keyed = [(next(self._keys), given) for given in arguments]
        self._ledger.note_all([(PLAN, key) for key, _ in keyed])
        requests = [tasks.app.tasks[name].job(key, *given) for key, given in keyed]
        with suppress(*_AWAY), self._connect() as connection:
            with connection.transaction():
                handles = tasks.app.enqueue_many(requests, connection)
                time.sleep(open_for)
            self._ledger.note_all([(ACKED, key, handle.id) for (key, _), handle in zip(keyed, handles, strict=True)])


class Operator(Actor):
    """Cancels jobs, pauses a queue and resumes it, and gives dead letters another chance."""

    def __init__(
        self,
        connect: Connect,
        dice: random.Random,
        is_over: threading.Event,
        *,
        ledger: Ledger,
        producers: Sequence[Producer],
    ) -> None:
        super().__init__(connect, dice, is_over)
        self._ledger = ledger
        self._producers = producers

    def act(self, connection: Connection[Any]) -> None:
        chance = self._dice.random()
        if chance < 0.8:
            self._cancel(connection)
        elif chance < 0.9:
            self._pause(connection)
        else:
            dead = list_dead_letters(connection, task="fail", limit=5)
            requeue_dead_letters(connection, [letter.job_id for letter in dead])  # they fail again, and die again
        self._is_over.wait(self._dice.uniform(0.0, 0.3))

    def _cancel(self, connection: Connection[Any]) -> None:
        if recent := self._dice.choice(self._producers).recent:
            job_id = self._dice.choice(recent)
            self._ledger.note(ASKED, job_id)
            if cancel_job(connection, job_id) is CancelAnswer.CANCELLED:
                self._ledger.note(CANCELLED, job_id)

    def _pause(self, connection: Connection[Any]) -> None:
        try:
            pause_queues(connection, [self._dice.choice(QUEUES)])
            self._is_over.wait(self._dice.uniform(0.1, 0.5))
        finally:
            while not self._resume():
                time.sleep(0.2)

    def _resume(self) -> bool:
        try:
            resume_queues(self._connected(), QUEUES)
        except (PgworkerError, psycopg.Error):
            self._drop()
            return False
        return True
