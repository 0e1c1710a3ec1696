"""A table of several orgs, and a login that reads and writes it with the rights of a worker and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pgworker.lifecycle.enqueue import enqueue_jobs
from pgworker.model.job import JobRequest
from pgworker.worker.lease import ClaimedJob, HeldLease
from pgworker.worker.transaction import JobTransactions
from tests.sql.actors import Worker

ORGS = ("acme", "bolt", "cork", "dune", "élan")


@dataclass(frozen=True, slots=True)
class Tenants:
    """`shop.notes (org_id, note)`, protected, with a row for each org. `dsn` is the login's, `owner` is a superuser."""

    owner: Connection[Any]
    dsn: str

    @property
    def user(self) -> str:
        return str(conninfo_to_dict(self.dsn)["user"])


def protect_notes(owner: Connection[Any], login: Callable[..., str]) -> Tenants:
    """Make the table, by a role that is no superuser, and the login."""
    maker, worker = login(), login("pgworker_worker")
    named, user = (str(conninfo_to_dict(dsn)["user"]) for dsn in (maker, worker))
    owner.execute(f"create schema shop authorization {named}".encode())
    owner.execute(f"grant usage on schema pgworker to {named}".encode())
    with psycopg.connect(maker, autocommit=True) as connection:
        connection.execute("create table shop.notes (org_id text not null, note text not null)")
        connection.execute("create index on shop.notes (org_id, note)")
        connection.execute("select pgworker.protect_table('shop.notes')")
        connection.execute(f"grant usage on schema shop to {user}".encode())
        connection.execute(f"grant select, insert, update, delete on shop.notes to {user}".encode())
    for org in ORGS:
        owner.execute("insert into shop.notes values (%s, 'of ' || %s)", [org, org])
    return Tenants(owner, worker)


class Slot:
    """What a worker has for one job at a time: a connection of `ctx.transaction()`, reset after each."""

    def __init__(self, dsn: str) -> None:
        self.transactions = JobTransactions(dsn, "a slot")

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.transactions.close()

    @contextmanager
    def run(self, job: ClaimedJob) -> Iterator[Connection[Any]]:
        """`ctx.transaction()` of this job, and what the runner does after the job, however it ends."""
        try:
            with self.transactions.open(job, None, lambda: False, lambda: None) as connection:
                yield connection
        finally:
            self.transactions.reset()


def claim(dsn: str, orgs: Sequence[str | None]) -> list[ClaimedJob]:
    """As many jobs as there are orgs, one for each, in this order and in one lease."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        enqueue_jobs(connection, [JobRequest("t", "{}", org_id=org) for org in orgs])
        held = Worker(connection).claim(len(orgs), ttl=3600)
    assert [row.org_id for row in held.rows] == list(orgs)
    lease = HeldLease(held.lease_id, 0, len(held.rows))
    return [ClaimedJob(lease, position, row) for position, row in enumerate(held.rows, start=1)]
