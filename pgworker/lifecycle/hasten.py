"""Hasten: what is scheduled for later is due now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from pgworker.sql.load import query


def hasten_jobs(connection: Connection[Any], job_ids: Sequence[UUID]) -> None:
    """For tests: queue rows are never updated otherwise, which leaves dead ones behind, and nobody is woken."""
    connection.execute(query("hasten_jobs"), {"job_ids": list(job_ids)})
