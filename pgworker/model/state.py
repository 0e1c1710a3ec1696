"""The states of a job and the outcomes of an execution, as the database spells them.

enqueue -> pending | scheduled -> running -> succeeded
                    ^               |-----> cancelled
                    |               |-----> dead_letter
                    +---- failed <--+
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Status(str, Enum):
    """Where a job stands. `LOST` is none of the promised states: a job that is nowhere, and worth an alarm."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    FAILED = "failed"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"
    LOST = "LOST"


WAITING: Final = frozenset({Status.PENDING, Status.SCHEDULED, Status.FAILED})
"""A job of these is in the queue."""


class Outcome(str, Enum):
    """How one execution ended. Only failed, timed_out and crashed are charged against max_attempts."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    LOST = "lost"
    RELEASED = "released"
    SNOOZED = "snoozed"

    def __str__(self) -> str:
        return self.value

    @property
    def is_charged(self) -> bool:
        return self in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED)


class WorkerState(str, Enum):
    """What a worker process does, as its heartbeats tell."""

    STARTING = "starting"
    """it imports its app, or its start hooks run"""
    IDLE = "idle"
    """it runs nothing, and would"""
    BUSY = "busy"
    """it runs a job; with more slots than one it may take more"""
    DRAINING = "draining"
    """it claims nothing more, and ends with the last job that it has"""
    PAUSED = "paused"
    """it claims nothing, since its pool was told not to; it may still run what it has"""


class CancelAnswer(str, Enum):
    """What a cancel achieved."""

    CANCELLED = "cancelled"
    """it waited, and will never run"""
    REQUESTED = "requested"
    """it runs; its handler sees `ctx.cancelled`, and is killed after the grace"""
    TOO_LATE = "too late"
    """it had ended already"""


class RetryAnswer(str, Enum):
    """What asking to run a job now achieved."""

    DUE = "due now"
    """it waited for a later time, which is now"""
    REQUEUED = "requeued"
    """it had been given up, and runs again with its failures counted from 0"""
    WAITING = "waiting"
    """it was due already"""
    RUNNING = "running"
    """a worker has it"""
    SUCCEEDED = "succeeded"
    """refused"""
    CANCELLED = "cancelled"
    """refused"""
    LOST = "LOST"
    """it is nowhere, which is none of the promised states"""

    @property
    def is_refusal(self) -> bool:
        return self in (RetryAnswer.SUCCEEDED, RetryAnswer.CANCELLED, RetryAnswer.LOST)


class CancelReason(int, Enum):
    """Why a running job is asked to stop; the words on the board are these numbers."""

    NONE = 0
    CANCELLED = 1
    DEADLINE = 2
    LEASE_LOST = 3
    SHUTDOWN = 4

    @property
    def outcome(self) -> Outcome:
        """What is recorded of an execution that had to be killed for this reason."""
        return _KILLED_AS[self]

    @property
    def words(self) -> str:
        """What the error says of it with which a handler stops."""
        return _WORDS[self]


_KILLED_AS = {
    CancelReason.NONE: Outcome.CRASHED,
    CancelReason.CANCELLED: Outcome.CANCELLED,
    CancelReason.DEADLINE: Outcome.TIMED_OUT,
    CancelReason.LEASE_LOST: Outcome.LOST,
    CancelReason.SHUTDOWN: Outcome.RELEASED,
}
_WORDS = {
    CancelReason.NONE: "not cancelled",
    CancelReason.CANCELLED: "the job was cancelled",
    CancelReason.DEADLINE: "the job's time is up",
    CancelReason.LEASE_LOST: "the job's lease is lost",
    CancelReason.SHUTDOWN: "the worker is shutting down",
}
