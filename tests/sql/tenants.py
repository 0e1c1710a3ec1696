"""A table of several orgs, and a login that reads and writes it with the rights of a worker and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pgworker.app.app import App
from pgworker.app.queue.leases import ClaimedJob, HeldLease
from pgworker.lifecycle.enqueue import enqueue_jobs
from pgworker.model.job import JobRequest
from pgworker.worker.transaction import JobTransactions
from tests.sql.actors import Worker

ORGS = ("acme", "bolt", "cork", "dune", "élan")
SEEN = "select distinct org_id from shop.notes"
APP = App()


@APP.task(name="t")
def nothing() -> None: ...


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


@dataclass(slots=True)
class Standing:
    """The execution of a job that has no deadline and is not cancelled."""

    claimed: ClaimedJob
    started_ns: int = 0
    is_settled: bool = False
    is_lost: bool = False
    has_ended: bool = False
    must_end: bool = False
    idle_limit_ms: int = 600_000
    commit_limit_ms: int = 60_000


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
            with self.transactions.open(Standing(job)) as connection:
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
    return [ClaimedJob(lease, position, row, APP.tasks["t"]) for position, row in enumerate(held.rows, start=1)]


# What one job leaves behind, for the next one to find. Each is the last that a job does.
MISCHIEF: dict[str, str] = {
    "another org, for the session": "set pgworker.org_id = 'bolt'",
    "another org, by a function": "select set_config('pgworker.org_id', 'bolt', false)",
    "a role": "set role pgworker_worker",
    "a role, by a function": "select set_config('role', 'pgworker_worker', false)",
    "session authorization": "set session authorization default",
    "search path": "set search_path = pg_temp",
    "row security": "set row_security = off",
    "a setting of its own": "set app.state = 'left behind'",
    "a timeout": "set statement_timeout = '1h'",
    "read only": "set default_transaction_read_only = on",
    "isolation": "set default_transaction_isolation = 'serializable'",
    "a temporary table": "create temp table notes as select * from shop.notes",
    "a temporary view": "create temp view looks as select * from shop.notes",
    "a temporary function": "create function pg_temp.look() returns text language sql return 'left behind'",
    "a prepared statement": "prepare looks as select org_id from shop.notes",
    "a cursor that outlives its transaction": "declare looks cursor with hold for select org_id from shop.notes",
    "a cursor": "declare looks cursor for select org_id from shop.notes",
    "a channel": "listen everything",
    "an advisory lock": "select pg_try_advisory_lock(42)",
    "its own commit": "commit",
    "its own rollback": "rollback",
    "its own commit, and a transaction of its own": "commit; begin; set pgworker.org_id = 'bolt'",
    "a sequence's last value": "create temp sequence numbers; select nextval('numbers')",
}

FRESH = """
select session_user = current_user, current_setting('role'), current_setting('search_path'),
       current_setting('row_security'), coalesce(current_setting('app.state', true), ''),
       current_setting('statement_timeout'), current_setting('transaction_read_only'),
       current_setting('transaction_isolation'), pgworker.current_org(),
       (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors where name <> ''),
       (select count(*) from pg_listening_channels()),
       (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
       (select count(*) from pg_class where relnamespace = pg_my_temp_schema()),
       (select count(*) from pg_proc where pronamespace = pg_my_temp_schema())
"""
AS_NEW = (True, "none", '"$user", public', "on", "", "0", "off", "read committed")


def is_fresh(connection: Connection[Any], org: str | None) -> None:
    """This transaction finds what it would on a new connection."""
    (row,) = connection.execute(FRESH).fetchall()
    assert type(row) is tuple
    assert row == (*AS_NEW, org, 0, 0, 0, 0, 0, 0)


def make_mischief(connection: Connection[Any], name: str) -> None:
    for statement in MISCHIEF[name].split("; "):
        connection.execute(statement.encode())
