"""Renew: leases of workers that are alive live longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.sql.load import query


def renew_leases(connection: Connection[Any], lease_ids: Sequence[UUID], ttl: float) -> dict[UUID, list[int | None]]:
    """Extend these leases by `ttl` seconds from now.

    Returns those that still exist, each with the positions of its cancelled jobs (None: released meanwhile).

    Committed asynchronously: a renewal that a crash of the server forgets only makes a lease end early, and the fence
    holds without it.
    """
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("set local synchronous_commit = off")
        rows = cursor.execute(query("renew_leases"), {"lease_ids": list(lease_ids), "ttl": ttl}).fetchall()
    return dict(rows)
