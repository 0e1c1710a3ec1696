"""Hooks of dead letters: what is enqueued when a job of a task is given up. Workers declare those of their app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pgworker.lifecycle.transaction import read_committed
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class DeadLetterHook:
    """What is enqueued when a job of `task` is given up. `timeout` is in seconds, None means none."""

    task: str
    handler: str
    queue: str
    priority: int
    max_attempts: int
    timeout: float | None


def declare_hooks(connection: Connection[Any], tasks: Sequence[str], hooks: Sequence[DeadLetterHook]) -> None:
    """From now on these are the hooks of `tasks`: others that they had are gone. Those of other tasks stay.

    A transaction of its own, on a connection in autocommit mode.
    """
    with read_committed(connection) as cursor:
        cursor.execute(query("lock_dead_letter_hooks"))
        cursor.execute(query("declare_dead_letter_hooks"), {"served": list(tasks), **_columns(hooks)})


def restore_hooks(connection: Connection[Any], hooks: Sequence[DeadLetterHook]) -> None:
    """Declare again what the server may have forgotten since; what others have declared for these tasks stays."""
    if hooks:
        connection.execute(query("restore_dead_letter_hooks"), _columns(hooks))


def _columns(hooks: Sequence[DeadLetterHook]) -> dict[str, list[Any]]:
    return {
        "tasks": [hook.task for hook in hooks],
        "handlers": [hook.handler for hook in hooks],
        "queues": [hook.queue for hook in hooks],
        "priorities": [hook.priority for hook in hooks],
        "max_attempts": [hook.max_attempts for hook in hooks],
        "timeouts_ms": [None if hook.timeout is None else round(hook.timeout * 1000) for hook in hooks],
    }
