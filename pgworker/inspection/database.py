"""The database itself: its clock and the version of its schema."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """The newest migration that was applied."""

    version: int
    name: str


def read_schema_version(connection: Connection[Any]) -> SchemaVersion:
    """The version of a migrated database."""
    return SchemaVersion(*connection.execute(query("read_schema_version")).fetchall()[0])


def read_clock(connection: Connection[Any]) -> datetime:
    """The time by the clock that decides when a job is due."""
    now: datetime = connection.execute(query("read_clock")).fetchall()[0][0]
    return now
