"""Ledgers: what handlers say of themselves, in a file outside of the database, and the tables it is compared in.

A record is one write of 25 bytes to a file opened with O_APPEND: whole, and in its place, also if the writer is killed
by its next instruction. A million jobs write two million of them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pgworker import Context
from tests.sql.invariants import EFFECTS, WITNESSED

START, END, COMMITTED = b"S", b"E", b"C"
"""A handler begins; it is about to return, or to commit; its own transaction has been acknowledged."""

NAME = "ledger"
"""The file, in the directory in which a pool runs."""

RECORD = struct.Struct("=c16sii")
_PIECE = 40_000  # records

TABLES = """
create table chaos.seen (kind "char" not null, job_id uuid not null, execution integer not null, pid integer not null);
-- as chaos.lease_ended, and whose it was
create table chaos.lease_left (lease_id uuid, worker_id uuid, at timestamptz);
create function chaos.see_lease_left() returns trigger language plpgsql as $$ begin
    insert into chaos.lease_left select lease_id, worker_id, clock_timestamp() from seen;
    return null;
end $$;
create trigger see_lease_left after delete on pgworker.job_leases referencing old table as seen
    for each statement execute function chaos.see_lease_left();
-- how many jobs a lease had when it was claimed
create table chaos.claimed (lease_id uuid, jobs integer);
create function chaos.see_claimed() returns trigger language plpgsql as $$ begin
    insert into chaos.claimed select lease_id, cardinality(job_ids) from seen;
    return null;
end $$;
create trigger see_claimed after insert on pgworker.job_leases referencing new table as seen
    for each statement execute function chaos.see_claimed();
"""
"""Beside the tables of `tests.sql.invariants.WITNESSES`."""


class Seen(NamedTuple):
    """One record."""

    kind: bytes
    job_id: UUID
    execution: int
    pid: int


def note(ctx: Context, kind: bytes) -> None:
    """Append a record to the ledger in the working directory."""
    job = ctx.job
    os.write(_file(os.getpid()), RECORD.pack(kind, job.id.bytes, job.execution, os.getpid()))


@cache
def _file(_pid: int) -> int:
    return os.open(NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read(directory: Path, first: int = 0) -> Iterator[Seen]:
    """The records in the order in which they were written, without so many of the first ones."""
    try:
        with (directory / NAME).open("rb") as ledger:
            ledger.seek(first * RECORD.size)
            written = ledger.read()
    except FileNotFoundError:
        return
    assert len(written) % RECORD.size == 0, "a record was cut"
    for kind, job_id, execution, pid in RECORD.iter_unpack(written):
        yield Seen(kind, UUID(bytes=job_id), execution, pid)


def store(connection: Connection[Any], directory: Path, enqueued: Iterable[UUID]) -> None:
    """Put the ledger into chaos.seen, and what producers were told into chaos.enqueued."""
    with connection.cursor() as cursor:
        with cursor.copy("copy chaos.enqueued from stdin") as copy:
            for job_id in enqueued:
                copy.write(f"{job_id}\n")
        with cursor.copy("copy chaos.seen from stdin") as copy:
            for piece in _pieces(directory):
                copy.write("".join(piece))
    connection.execute("analyze chaos.seen")
    connection.execute("analyze chaos.enqueued")


def _pieces(directory: Path) -> Iterator[list[str]]:
    """The ledger as lines for COPY; not by `read`: a million UUIDs made and written take a while."""
    path = directory / NAME
    if not path.exists():
        return
    with path.open("rb") as ledger:
        while piece := ledger.read(RECORD.size * _PIECE):
            yield [
                f"{chr(kind[0])}\t{job_id.hex()}\t{execution}\t{pid}\n"
                for kind, job_id, execution, pid in RECORD.iter_unpack(piece)
            ]


WRONG: dict[str, str] = {
    "lost: a job whose id a producer was told of has not succeeded": """
        select job_id from chaos.enqueued
        where not exists (select from pgworker.job_executions as e
                          where e.job_id = enqueued.job_id and e.outcome = 'succeeded')
    """,
    "acknowledged twice: more than one end of a job is recorded as its last": """
        select job_id, count(*) from pgworker.job_executions where outcome in ('succeeded', 'cancelled')
        group by job_id having count(*) > 1
    """,
    "acknowledged twice: a job's own transaction committed twice": """
        select job_id, count(*) from chaos.seen where kind = 'C' group by job_id having count(*) > 1
    """,
    "acknowledged and not recorded": """
        select job_id, execution from chaos.seen where kind = 'C'
          and not exists (select from pgworker.job_executions as e
                          where e.job_id = seen.job_id and e.execution = seen.execution and e.outcome = 'succeeded')
    """,
    "recorded as succeeded and never run to its end": """
        select job_id, execution from pgworker.job_executions as e where outcome = 'succeeded'
          and not exists (select from chaos.seen
                          where seen.job_id = e.job_id and seen.execution = e.execution and kind = 'E')
    """,
    "effects: not exactly one for an execution that succeeded, or one for another": WITNESSED[EFFECTS],
}
"""What ledgers, effects and executions must agree in, asked when all is quiet and every job is to have succeeded."""
