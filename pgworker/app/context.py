"""What a handler learns about the execution it is, when its first parameter is a `Context`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from pgworker.app.orgs import Org, OrgConfig
from pgworker.app.scope import log_fields
from pgworker.db.connect import AsyncConnection, Connection
from pgworker.errors import Cancelled
from pgworker.model.durations import seconds
from pgworker.model.job import Job
from pgworker.model.payload import decode
from pgworker.model.state import CancelReason
from pgworker.observe import logs

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # takes no parameter before Python 3.11

_POLL: Final = 0.05
"""Seconds between two looks at the cancel flag, which is a word in shared memory that nothing can wait for."""


class Context:
    """One execution of a job. Made by the worker; asks nobody until a handler does.

    `state` is what the worker's start hooks have made; `cancel_seen` is True once the handler has learned here that it
    is to stop.
    """

    __slots__ = (
        "_cancel_reason",
        "_checkpoint",
        "_deadline_ns",
        "_job",
        "_lease_id",
        "_logger",
        "_make_job",
        "_org",
        "_org_config",
        "_position",
        "_progress",
        "_transaction",
        "_transaction_async",
        "_transaction_entered",
        "cancel_seen",
        "state",
    )

    def __init__(
        self,
        *,
        make_job: Callable[[], Job],
        lease_id: UUID,
        position: int,
        deadline_ns: int,
        cancel_reason: Callable[[], CancelReason],
        transaction: Callable[[], AbstractContextManager[Connection]],
        transaction_async: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        state: SimpleNamespace,
        progress: Callable[[float, str, Mapping[str, Any] | None], None],
        checkpoint: str | None,
        org_config: OrgConfig | None,
    ) -> None:
        """`deadline_ns` is on the monotonic clock, 0 means none. `make_job` is called once, if ever.

        `state` is what `App.start_worker()` returned, `org_config` is the App's.
        """
        self._make_job = make_job
        self._lease_id = lease_id
        self._position = position
        self._deadline_ns = deadline_ns
        self._cancel_reason = cancel_reason
        self._transaction = transaction
        self._transaction_async = transaction_async
        self._progress = progress
        self._checkpoint = checkpoint
        self._transaction_entered = False
        self._org_config = org_config
        self._job: Job | None = None
        self._org: Org | None = None
        self._logger: _JobLogger | None = None
        self.state: Any = state
        self.cancel_seen = False

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        if self._job is None:
            self._job = self._make_job()
        return self._job

    @property
    def org(self) -> Org | None:
        """The org that the job is for, None if it has none."""
        if self._org is None and self.job.org_id is not None:
            self._org = Org(self.job.org_id, self._org_config)
        return self._org

    @property
    def idempotency_key(self) -> str:
        """The job's id: the same in every execution, for outside services that drop what they have already done."""
        return str(self.job.id)

    @property
    def execution_id(self) -> str:
        """The lease and the position in it: never the same twice, for fencing and logs."""
        return f"{self._lease_id}:{self._position}"

    @property
    def deadline(self) -> float | None:
        """Seconds left, 0.0 when they are over; None if the job has no timeout."""
        if not self._deadline_ns:
            return None
        return max(0.0, (self._deadline_ns - time.monotonic_ns()) / 1e9)

    @property
    def cancel_reason(self) -> CancelReason:
        """Why this execution is to stop; NONE while it is not."""
        reason = self._cancel_reason()
        if reason is not CancelReason.NONE:
            self.cancel_seen = True
        return reason

    @property
    def cancelled(self) -> bool:
        """Whether this execution is to stop. A handler that read True, and returns or raises, has stopped for
        `cancel_reason`: its job is cancelled, timed out, or goes back to the queue; what it returned is not stored."""
        return self.cancel_reason is not CancelReason.NONE

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if this execution is to stop."""
        reason = self.cancel_reason
        if reason is not CancelReason.NONE:
            raise Cancelled(reason.words)

    def wait_cancelled(self, timeout: float | timedelta) -> bool:
        """Sleep `timeout` (seconds or timedelta), or until this execution is to stop: True, within 50 ms."""
        ends = _ends(timeout)
        while not self.cancelled:
            left = ends - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _POLL))
        return True

    async def wait_cancelled_async(self, timeout: float | timedelta) -> bool:
        """As `wait_cancelled`, for async handlers."""
        ends = _ends(timeout)
        while not self.cancelled:
            left = ends - time.monotonic()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, _POLL))
        return True

    def progress(self, fraction: float, message: str = "", *, checkpoint: Mapping[str, Any] | None = None) -> None:
        """Say how far the job is: from 0 to 1, in words, and with what its next execution is to begin from.

        Stored within a second or so, at the latest when this execution ends, if its worker lives; the last one counts.
        A checkpoint stays until another is given; at most 64 KiB of JSON.
        ValueError or InvalidPayload for what can't be stored.
        """
        self._progress(fraction, message, checkpoint)

    @property
    def checkpoint(self) -> Any:
        """The checkpoint that an earlier execution of this job left; None: there is none."""
        return None if self._checkpoint is None else decode(self._checkpoint)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs with the fields job, execution, task, queue and, if it has one, org, and those of the call's `extra`."""
        if self._logger is None:
            self._logger = _JobLogger(logs.logger("task"), log_fields(self.job))
        return self._logger

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction whose commit records this job's success with whatever was written in it.

        Enter it once, as the last thing the handler does. RuntimeError: it was entered before.
        """
        self._enter_transaction()
        with self._transaction() as connection:
            yield connection

    @asynccontextmanager
    async def transaction_async(self) -> AsyncIterator[AsyncConnection]:
        """As `transaction`, for an `async def` task: an asynchronous connection."""
        self._enter_transaction()
        async with self._transaction_async() as connection:
            yield connection

    def _enter_transaction(self) -> None:
        if self._transaction_entered:
            raise RuntimeError("a job's transaction can be entered only once: its commit is the success of the job")
        self._transaction_entered = True


def _ends(timeout: object) -> float:
    return time.monotonic() + seconds(timeout, "timeout", error=ValueError)


class _JobLogger(_Adapter):
    """The standard adapter replaces the `extra` of a call; this one adds to it."""

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        super().__init__(logger, {"fields": fields})
        self.fields = fields

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        given = kwargs.get("extra") or {}
        kwargs["extra"] = {**given, "fields": {**given.get("fields", {}), **self.fields}}
        return msg, kwargs
