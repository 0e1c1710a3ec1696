"""Renew: leases of workers that are alive live longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.lifecycle.transaction import execute_alone
from pgworker.sql.load import query


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of one lease. `cancelled` has the positions of its cancelled jobs, None for one that went back.

    `is_busy`: somebody settles, releases or cancels in it just now; it is as it was, ask again.
    """

    cancelled: Sequence[int | None]
    is_busy: bool


def renew_leases(connection: Connection[Any], lease_ids: Sequence[UUID], ttl: float) -> dict[UUID, Renewal]:
    """Extend these leases by `ttl` seconds from now. What is not in the answer is lost.

    One round trip: on a slow line a short lease has no time for more. Committed asynchronously: a renewal that a crash
    of the server forgets only makes a lease end early, and the fence holds without it.
    """
    parameters = {"lease_ids": list(lease_ids), "ttl": ttl}
    rows = execute_alone(connection, query("renew_leases"), parameters, "set local synchronous_commit = off")
    return {lease_id: Renewal(cancelled, is_busy) for lease_id, cancelled, is_busy in rows}
