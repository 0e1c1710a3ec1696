"""The checker: when all is quiet, what is stored is compared with the evidence, invariant by invariant.

Each is a query that returns what breaks it. Those of the stored jobs and of the witnesses in the database are shared
with the tests of the statements; those of the ledgers are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from psycopg import Connection

from tests.chaos.evidence import ACKED, CANCELLED, FENCED, PLAN, PRODUCER, ROLLED_BACK, STARTED, read, worker_ledgers
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

TABLES = """
alter table chaos.effect add column org_id text;
create table chaos.planned (key bigint not null);
create table chaos.acked (key bigint not null, job_id uuid not null);
create table chaos.started (job_id uuid not null, execution integer not null, lease_id uuid, who text not null);
grant usage on schema chaos to public;
grant insert on all tables in schema chaos to public;
alter function chaos.see_recorded() security definer;
alter function chaos.see_lease_ended() security definer;
"""

LEDGERS: Mapping[str, str] = {
    "I1: a job whose enqueue was acknowledged is not lost": """
        select acked.* from chaos.acked where not exists (select from pgworker.jobs where jobs.id = acked.job_id)
    """,
    "I1: what was enqueued once is there once": """
        select payload ->> 'key' as key, array_agg(id) from pgworker.jobs
        where payload ? 'key' group by 1 having count(*) > 1
    """,
    "I1: nothing is there that nobody has planned": """
        select id, task from pgworker.jobs
        where payload ? 'key' and not exists (select from chaos.planned where planned.key = (payload ->> 'key')::bigint)
    """,
    "I1: a job that ran is a job": """
        select started.* from chaos.started where not exists (select from pgworker.jobs where jobs.id = started.job_id)
    """,
    "I3: an execution starts once": """
        select job_id, execution, array_agg(lease_id), array_agg(who) from chaos.started
        group by job_id, execution having count(*) > 1
    """,
    "I3: an execution that did not start did not succeed": """
        select e.job_id, e.execution, task from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
        where e.outcome = 'succeeded'
          and not exists (select from chaos.started as s
                          where s.job_id = e.job_id and s.execution = e.execution and s.lease_id = e.lease_id)
    """,
    "I6: a job enqueued by another one is there if and only if that one succeeded": """
        select coalesce(parent.job_id, child.parent) as parent, parent.execution, child.id as child
        from (select e.job_id, e.execution from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
              where jobs.task = 'effect_parent' and e.outcome = 'succeeded') as parent
        full join (select id, (payload ->> 'parent')::uuid as parent, (payload ->> 'execution')::integer as execution
                   from pgworker.jobs where task = 'child') as child
             on child.parent = parent.job_id and child.execution = parent.execution
        where child.id is null or parent.job_id is null
    """,
    "I8: an effect is of the org of its job": """
        select effect.*, jobs.org_id from chaos.effect join pgworker.jobs on jobs.id = effect.job_id
        where coalesce(effect.org_id, '') <> coalesce(jobs.org_id, '')
    """,
    "a crash is explained": """
        select job_id, execution, outcome from pgworker.job_executions
        where outcome in ('crashed', 'lost', 'timed_out') and coalesce(cause, error ->> 'type') is null
    """,
}


def set_up(connection: Connection[Any]) -> None:
    """The witnesses in the database, and room for the ledgers."""
    connection.execute((WITNESSES + TABLES).encode())


def load(connection: Connection[Any], directory: Path) -> None:
    """Copy the ledgers into the database, once all is quiet."""
    words = list(read(directory / PRODUCER)) if (directory / PRODUCER).exists() else []
    _copy(connection, "planned (key)", (line[1:] for line in words if line[0] == PLAN))
    _copy(connection, "acked (key, job_id)", (line[1:] for line in words if line[0] == ACKED))
    _copy(connection, "enqueued (job_id)", (line[2:] for line in words if line[0] == ACKED))
    _copy(connection, "rolled_back (job_id)", (line[1:] for line in words if line[0] == ROLLED_BACK))
    _copy(connection, "cancelled (job_id)", (line[1:] for line in words if line[0] == CANCELLED))
    for ledger in worker_ledgers(directory):
        lines = list(read(ledger))
        started = ([*line[1:4], ledger.stem] for line in lines if line[0] == STARTED)
        _copy(connection, "started (job_id, execution, lease_id, who)", started)
        for word, table in ((ACKED, "acknowledged"), (FENCED, "refused")):
            _copy(
                connection, f"{table} (job_id, execution, lease_id)", (line[1:4] for line in lines if line[0] == word)
            )


def check(connection: Connection[Any], *, has_steady_clock: bool = True) -> dict[str, list[tuple[Any, ...]]]:
    """What breaks which invariant; nothing when all is well. What compares times needs a clock that was never set."""
    connection.execute("analyze")
    return offences(
        connection,
        {name: query for name, query in INVARIANTS.items() if has_steady_clock or not name.startswith("I5")},
    )


def _copy(connection: Connection[Any], where: str, rows: Iterable[list[str]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"copy chaos.{where} from stdin".encode()) as copy:
        for row in rows:
            copy.write_row(row)


INVARIANTS: Mapping[str, str] = {**STORED, **WITNESSED, **LEDGERS}
