"""One by one: the server would not store something in a group. Find it, and record its job without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg
from msgspec import structs
from psycopg import Connection, Cursor

from pgworker.app.queue.leases import HeldLease, LeaseUpdate
from pgworker.db.plan import by_index
from pgworker.lifecycle.progress import forget_progress, save_progress
from pgworker.lifecycle.settle import Settlement, is_settled, settle_jobs
from pgworker.model.progress import ProgressUpdate
from pgworker.observe.logs import fields, logger

UNSTORABLE = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
"""What the server says of a result or error that it can't take; no reason to try the same again."""

log = logger("queue")


def settle_one_by_one(
    connection: Connection[Any], updates: Sequence[LeaseUpdate]
) -> list[tuple[HeldLease, Settlement]]:
    """After a transaction with it has failed; each now commits by itself. What the server has not recorded just now,
    as `is_settled` says, of which lease."""
    for update in updates:
        for position, progress in update.progress.items():
            save_or_say(connection, update.lease, position, progress)
    unsettled = [(update.lease, single) for update in updates for single in _settle(connection, update)]
    if finished := [job_id for update in updates for job_id in update.finished]:
        with by_index(connection):
            forget_progress(connection, finished)
    return unsettled


def save_or_say(connection: Connection[Any], lease: HeldLease, position: int, progress: ProgressUpdate) -> bool:
    """Store what one job said of itself, in a transaction of its own. False: the server would not have it."""
    try:
        with by_index(connection):
            save_progress(connection, lease.lease_id, {position: progress})
    except UNSTORABLE as error:
        log.error(
            "the server would not store progress",
            extra=fields("progress_not_stored", **lease.log_fields(position), error=_why(error)),
        )
        return False
    return True


def _settle(connection: Connection[Any], update: LeaseUpdate) -> list[Settlement]:
    settlement, unsettled = update.settlement, []
    if settlement is None:
        return []
    for position, run in enumerate(settlement.ended, start=settlement.first):
        if run is not None:
            single = Settlement(settlement.lease_id, position, [run], ends_lease=False, is_repeated=True)
            if not _settle_alone(connection, update.lease, single):
                unsettled.append(single)
    if settlement.ends_lease:
        with connection.cursor() as cursor:
            _send(cursor, Settlement(settlement.lease_id, 1, [], ends_lease=True, server=settlement.server))
    return unsettled


def _settle_alone(connection: Connection[Any], lease: HeldLease, single: Settlement) -> bool:
    with connection.cursor() as cursor:
        try:
            _send(cursor, single)
        except UNSTORABLE as error:
            log.error(
                "the server would not store the result or error of a job; it is recorded without",
                extra=fields("result_not_stored", **lease.log_fields(single.first), error=_why(error)),
            )
            bare = replace(single, ended=[structs.replace(single.executions[0], result=None, error=None, run_at=None)])
            _send(cursor, bare)
        return is_settled(cursor, single)


def _send(cursor: Cursor[Any], settlement: Settlement) -> None:
    with by_index(cursor.connection):  # the plan that is made now stays
        settle_jobs(cursor, settlement, time.monotonic_ns())


def _why(error: psycopg.Error) -> str:
    """Without what the server adds to it, which quotes the value."""
    return error.diag.message_primary or type(error).__name__
