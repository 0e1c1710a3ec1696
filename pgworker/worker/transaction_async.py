"""`ctx.transaction_async()`: the same as `ctx.transaction()`, for a handler on the event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgworker.db.adapters import OwnAsyncCursor
from pgworker.db.connect import connect_async, is_farewell
from pgworker.db.patience import ANSWER, PatientAsyncConnection
from pgworker.errors import DatabaseUnavailable
from pgworker.lifecycle.settle import find_unsettled_async, settle_success_async
from pgworker.linux import fork
from pgworker.worker.transaction import (
    Settleable,
    lease_is_gone,
    log_found_commit,
    patience_at_the_end,
    raise_if_it_must_end,
    refuse_after_the_end,
    settings_of,
    settlement_of,
)

Answer = TypeVar("Answer")


class AsyncJobTransactions:
    """An asynchronous connection of one slot, and the jobs that settle through it, one at a time."""

    def __init__(self, dsn: str, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._connection: PatientAsyncConnection[Any] | None = None
        self._is_used = False

    @asynccontextmanager
    async def open(self, execution: Settleable) -> AsyncIterator[AsyncConnection[Any]]:
        """As `JobTransactions.open`."""
        connection, transaction = await self._begin(execution)
        generation = fork.generation
        has_settled = False
        try:
            async with transaction:
                try:
                    connection.patience = None  # the handler has a deadline
                    yield connection
                finally:
                    fork.leave_if_forked(generation)
                    connection.patience = patience_at_the_end(execution)
                await _settle(connection, execution)
                has_settled = True
        except (psycopg.OperationalError, psycopg.InternalError) as error:
            if is_farewell(error):
                await connection.close()
            if not (connection.closed and await self._has_committed(execution)):
                raise
            log_found_commit(execution, error)
            has_settled = True
        if has_settled:
            execution.is_settled = True

    async def reset(self) -> None:
        """Make the connection as new, or drop it: nothing that a handler did to it reaches the next job."""
        connection = self._connection
        if connection is None or not self._is_used:
            return
        self._is_used = False
        connection.patience = ANSWER
        if connection.prepare_threshold is not None:  # the driver's list of statements would outlive DISCARD ALL
            await self.close()
            return
        try:
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                await connection.rollback()
            await connection.set_autocommit(True)
            await connection.execute("discard all")
            await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
            await connection.set_read_only(None)
            await connection.set_deferrable(None)
            connection.row_factory, connection.cursor_factory = tuple_row, psycopg.AsyncCursor
            connection.server_cursor_factory = psycopg.AsyncServerCursor
        except (psycopg.Error, asyncio.CancelledError):  # by the handler, which has cancelled its own task at its end
            await self.close()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _begin(self, execution: Settleable) -> tuple[PatientAsyncConnection[Any], AsyncExitStack]:
        """The connection, and the transaction begun on it."""

        async def begin() -> tuple[PatientAsyncConnection[Any], AsyncExitStack]:
            connection = await self._connected()
            refuse_after_the_end(execution)
            self._is_used = True
            connection.patience = ANSWER
            async with AsyncExitStack() as begun:
                await begun.enter_async_context(connection.transaction())
                await OwnAsyncCursor(connection).execute(*settings_of(execution))
                return connection, begun.pop_all()

        return await self._patiently(begin, execution)

    async def _patiently(self, ask: Callable[[], Awaitable[Answer]], execution: Settleable) -> Answer:
        while (answer := await self._attempt(ask, execution)) is None:
            await asyncio.sleep(random.uniform(0.1, 0.3))
        return answer

    async def _attempt(self, ask: Callable[[], Awaitable[Answer]], execution: Settleable) -> Answer | None:
        """None: there is no connection."""
        try:
            return await ask()
        except (DatabaseUnavailable, psycopg.OperationalError) as error:
            if self._connection is not None and not self._connection.closed:
                raise
            raise_if_it_must_end(execution, error)
            return None

    async def _connected(self) -> PatientAsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await connect_async(
                self._dsn,
                application_name=self._application_name,
                prepare_threshold=None,
                patience=ANSWER,
                adapters=psycopg.adapters,
            )
            await self._connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        return self._connection

    async def _has_committed(self, execution: Settleable) -> bool:
        """After a connection died, perhaps at COMMIT: whether that took effect."""

        async def look() -> bool:
            async with OwnAsyncCursor(await self._connected()) as cursor:
                return not await find_unsettled_async(cursor, settlement_of(execution))

        return await self._patiently(look, execution)


async def _settle(connection: AsyncConnection[Any], execution: Settleable) -> None:
    settlement = settlement_of(execution)
    async with OwnAsyncCursor(connection) as cursor:
        if not await settle_success_async(cursor, settlement, time.monotonic_ns(), execution.commit_limit_ms):
            raise lease_is_gone(execution)
