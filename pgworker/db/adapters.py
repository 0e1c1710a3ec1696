"""How Python's values and PostgreSQL's become each other in our own statements, whatever an app has the driver do.

`psycopg.adapters` is one map for the whole process, copied into each new connection. An app that has registered uuids
as text there, or lists as jsonb, means its own statements: ours go by the driver's defaults.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, postgres
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format
from psycopg.rows import TupleRow, tuple_row
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays
from psycopg.types.json import set_json_loads
from psycopg.types.string import ByteaBinaryLoader


def _defaults() -> AdaptersMap:
    types = TypesRegistry()
    postgres.register_default_types(types)
    adapters = AdaptersMap(types=types)
    postgres.register_default_adapters(adapters)
    register_all_arrays(adapters)
    set_json_loads(msgspec.json.decode, context=adapters)
    return adapters


OWN: Final = _defaults()
"""The driver's defaults; json and jsonb results are decoded by msgspec."""

_TIMES_AS_SENT: Final = AdaptersMap(OWN)
_TIMES_AS_SENT.register_loader("timestamptz", ByteaBinaryLoader)


class OwnCursor(Cursor[TupleRow]):
    """For statements of ours on anybody's connection: its rows are tuples, and its adapters OWN."""

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    @property
    def adapters(self) -> AdaptersMap:
        return OWN


class OwnAsyncCursor(AsyncCursor[TupleRow]):
    """As OwnCursor."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    @property
    def adapters(self) -> AdaptersMap:
        return OWN


class ClaimingCursor(OwnCursor):
    """Binary, and times are the bytes that the server sends: to make two datetimes takes the driver 0.7 of the 0.9 µs
    of a claimed row, and few ask for them."""

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(connection)
        self.format = Format.BINARY

    @property
    def adapters(self) -> AdaptersMap:
        return _TIMES_AS_SENT
