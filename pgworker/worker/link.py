"""The clerk's connection, made anew after each outage."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from pgworker.app.task import Task
from pgworker.config.settings import PoolSettings
from pgworker.db.connect import connect_to_schema
from pgworker.db.patience import Patience, PatientConnection
from pgworker.errors import PgworkerError
from pgworker.lifecycle.dead_letter_hooks import DeadLetterHook, declare_hooks, restore_hooks
from pgworker.lifecycle.heartbeat import announce_tasks
from pgworker.lifecycle.transaction import set_up_session
from pgworker.linux.row import BoardRow
from pgworker.model.retry import Backoff

_RECONNECT_CAP = 2.0  # seconds


class Link:
    """The database, and what it is told of this worker: its tasks and their hooks, whenever it is connected to."""

    def __init__(
        self,
        dsn: str,
        application_name: str,
        settings: PoolSettings,
        row: BoardRow,
        tasks: Mapping[str, Task[..., Any]],
        hooks: Sequence[DeadLetterHook],
    ) -> None:
        self.dsn = dsn
        self._application_name = application_name
        self._prepare = None if settings.pooler else 1
        self._row = row
        self._tasks = list(tasks)
        # Not the usual one, nor one of the app's own class: only a worker can ask that for its delay.
        backoffs = {name: task.backoff for name, task in tasks.items()}
        self._backoffs = {name: one for name, one in backoffs.items() if type(one) is Backoff and one != Backoff()}
        self._hooks = hooks
        self._has_declared = False
        self._patience = Patience(settings.lease_ttl, longest=settings.lease_ttl)
        self._connection: PatientConnection[Any] | None = None
        self._limited_to: float | None = None
        self._failures = 0

    def open(self) -> None:
        """Connect, unless we are. The first time says which hooks these tasks have; later ones only remind of them."""
        if self._connection is not None and not self._connection.closed:
            if self._limited_to != self._connection.patience:
                self._set_up()
            return
        self._connection = connect_to_schema(
            self.dsn,
            application_name=self._application_name,
            prepare_threshold=self._prepare,
            patience=self._patience.seconds,
            accepts_newer=True,
        )
        self._set_up()
        if not self._has_declared:
            declare_hooks(self._connection, self._tasks, self._hooks)
            self._has_declared = True
        elif not self._row.is_draining:  # perhaps for a newer app
            restore_hooks(self._connection, self._hooks)
        announce_tasks(self._connection, self._row.tasks_hash, self._tasks, self._backoffs)

    def _set_up(self) -> None:
        """With the limit that goes with its patience, which may be more at first; not with --pooler."""
        connection = self.connection()
        if self._prepare is None:
            connection.limits_each = True
        else:
            set_up_session(connection)
        self._limited_to = connection.patience

    def connection(self) -> PatientConnection[Any]:
        assert self._connection is not None, "`open` comes first in every round"
        return self._connection

    def has_answered(self) -> None:
        """A whole trip went well: the next answer is waited for as long as is usual, and the next connection comes soon
        after the next error. To have connected is not enough: of each trip the server may refuse the same statement."""
        self._failures = 0
        self._patience.answered(self.connection())

    def fail(self, error: psycopg.Error | OSError | PgworkerError) -> float:
        """Drop the connection after an error; returns the seconds to wait before the next one."""
        self.close()
        self._failures += 1
        self._patience.after(error)
        return min(_RECONNECT_CAP, 0.1 * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
