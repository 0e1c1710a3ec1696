"""How long one waits for an answer of the database.

TCP finds a peer that has vanished (keepalives, tcp_user_timeout). A peer that acknowledges every byte and says nothing
(a load balancer or pooler with a dead server behind it) is found by these clocks alone.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg

Answer = TypeVar("Answer")
Row = TypeVar("Row")

ANSWER: Final = 10.0
"""Seconds for one answer, where waiting longer helps nobody."""

_LEAST: Final = 3.0
"""Seconds for one answer, however short leases are."""

LONGEST: Final = 3600.0
"""Seconds for what may take long by itself, such as the copy of a day."""

_A_PIECE: Final = 0.1
"""Seconds that each piece of an answer buys: a large one on a slow line comes in more than ten a second."""

_HELD: Final = 1.0
"""Seconds between two looks, which come ten times a second, after which it was this process that did not go on."""


class Silence(psycopg.OperationalError):
    """No answer within the connection's patience; the connection is closed."""


class Patience:
    """Of somebody who asks again on a new connection: twice as long each time that nothing was answered.

    So what takes long by itself is done at last, and a lock that lasts for hours gathers fewer backends that wait for
    it with nobody at their other end.
    """

    def __init__(self, lease_ttl: float, longest: float) -> None:
        """`lease_ttl`: seconds that the leases last that depend on the answers. `longest`: seconds for one answer at
        most, as nothing else is done meanwhile, and nobody hears that the server is well again."""
        self._shortest = max(_LEAST, min(ANSWER, lease_ttl / 4))
        self._longest = max(self._shortest, longest)
        self.seconds = self._shortest

    def after(self, error: BaseException) -> None:
        """It ended in this."""
        if isinstance(error, Silence | psycopg.errors.QueryCanceled):
            self.seconds = min(2 * self.seconds, self._longest)

    def answered(self, connection: PatientConnection[Any]) -> None:
        """All that was asked for was answered, on this connection, which waits no longer than at first from now on."""
        connection.patience = self.seconds = self._shortest


class PatientConnection(psycopg.Connection[Row]):
    """Raises Silence, and is closed, when an answer takes longer than `patience` (seconds; None: for ever)."""

    patience: float | None = None
    limits_each: bool = False
    """The session can't keep a limit for the server: each transaction must name it."""
    server: datetime | None = None
    """When the one server was started that this session is with, and that has its settings; None: it may be another one
    with each transaction, or has none of our settings."""

    def wait(self, gen: Generator[Any, Any, Answer], *args: Any, **kwargs: Any) -> Answer:
        """What every statement of the driver waits in."""
        if self.patience is None:
            return super().wait(gen, *args, **kwargs)
        try:
            return super().wait(_within(self.patience, gen), *args, **kwargs)
        except Silence:
            self.pgconn.finish()
            raise


class PatientAsyncConnection(psycopg.AsyncConnection[Row]):
    """As PatientConnection, for an event loop."""

    patience: float | None = None

    async def wait(self, gen: Generator[Any, Any, Answer], *args: Any, **kwargs: Any) -> Answer:
        """What every statement of the driver waits in."""
        if self.patience is None:
            return await super().wait(gen, *args, **kwargs)
        try:
            return await super().wait(_within(self.patience, gen), *args, **kwargs)
        except Silence:
            self.pgconn.finish()
            raise


def limit_of(connection: psycopg.Connection[Any]) -> int:
    """`server_limit_ms` with the patience that this connection has now."""
    return server_limit_ms(connection.patience if isinstance(connection, PatientConnection) else None)


def server_limit_ms(patience: float | None) -> int:
    """A statement_timeout, with which the server gives up before who has this patience; 0: none."""
    return 0 if patience is None else round(patience * 800)


def _within(seconds: float, gen: Generator[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
    """`gen`, which yields what it waits for and is sent what is ready: 0 about ten times a second for nothing."""
    looked_at = time.monotonic()
    give_up_at = looked_at + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            wanted = gen.send(ready)
            now = time.monotonic()
            if ready:
                give_up_at = max(min(give_up_at + _A_PIECE, now + seconds), now + _A_PIECE)
            elif now - looked_at > _HELD:  # not the database: we were stopped, or kept from the GIL
                give_up_at = max(give_up_at, now + _A_PIECE)
            elif now > give_up_at:
                raise Silence(f"no answer within {seconds:g} s")
            looked_at = now
    except StopIteration as end:
        answer: Answer = end.value
        return answer
