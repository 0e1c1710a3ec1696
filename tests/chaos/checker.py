"""The checker: when all is quiet, what is stored is compared with the evidence, invariant by invariant.

Each is a query that returns what breaks it. Those of the stored jobs and of the witnesses in the database are shared
with the tests of the statements; those of the ledgers are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from psycopg import Connection

from tests.chaos.evidence import (
    ACKED,
    ASKED,
    BEGAN,
    CANCELLED,
    FENCED,
    PLAN,
    PRODUCER,
    ROLLED_BACK,
    STARTED,
    read,
    worker_ledgers,
)
from tests.chaos.witness import NONE
from tests.sql.invariants import STORED, WITNESSED, WITNESSES, offences

RECOVERY = 30.0
"""Seconds after the end of a worker within which what it held must be taken back, whatever else is broken meanwhile."""

TABLES = """
alter table chaos.effect add column org_id text;
create table chaos.planned (key bigint not null);
create table chaos.acked (key bigint not null, job_id uuid not null);
create table chaos.asked (job_id uuid not null);
create table chaos.began (job_id uuid not null, execution integer not null, lease_id uuid not null);
create table chaos.started
    (job_id uuid not null, execution integer not null, lease_id uuid, key text, org_id text, who text not null);
grant usage on schema chaos to public;
grant insert on all tables in schema chaos to public;
alter function chaos.see_recorded() security definer;
alter function chaos.see_lease_ended() security definer;

-- what each lease was for, seen as it was claimed; how it was for its worker when the lease ended; who was given up
create table chaos.leased (lease_id uuid, job_ids uuid[], executions integer[], slots smallint, moment bigint);
create table chaos.lease_taken
    (lease_id uuid, expires_at timestamptz, worker_ended_at timestamptz, worker_ended_how text, xid xid8,
     at timestamptz);
create table chaos.buried (job_id uuid, execution integer, task text, failures smallint, max_attempts smallint);

create function chaos.see_leased() returns trigger language plpgsql security definer as $$ begin
    insert into chaos.leased select lease_id, job_ids, executions, slots, nextval('chaos.moment') from seen;
    return null;
end $$;
create trigger see_leased after insert on pgworker.job_leases referencing new table as seen
    for each statement execute function chaos.see_leased();

create function chaos.see_lease_taken() returns trigger language plpgsql security definer as $$ begin
    insert into chaos.lease_taken
    select seen.lease_id, seen.expires_at, worker.ended_at, worker.ended_how, pg_current_xact_id(), clock_timestamp()
    from seen left join pgworker.worker_heartbeats as worker using (worker_id);
    return null;
end $$;
create trigger see_lease_taken after delete on pgworker.job_leases referencing old table as seen
    for each statement execute function chaos.see_lease_taken();

create function chaos.see_buried() returns trigger language plpgsql security definer as $$ begin
    insert into chaos.buried select job_id, execution, task, failures, max_attempts from seen;
    return null;
end $$;
create trigger see_buried after insert on pgworker.dead_letter_jobs referencing new table as seen
    for each statement execute function chaos.see_buried();

create table chaos.rewritten (job_id uuid, execution integer, outcome text);
create function chaos.see_rewritten() returns trigger language plpgsql security definer as $$ begin
    insert into chaos.rewritten select job_id, execution, outcome from seen;
    return null;
end $$;
create trigger see_updated after update on pgworker.job_executions referencing old table as seen
    for each statement execute function chaos.see_rewritten();
create trigger see_deleted after delete on pgworker.job_executions referencing old table as seen
    for each statement execute function chaos.see_rewritten();

create view chaos.started_or_recorded as
    select job_id, execution from chaos.started union select job_id, execution from pgworker.job_executions;
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
    "I1: what has succeeded or was cancelled never runs again": """
        select e.job_id, e.execution, e.outcome, next.execution as next
        from pgworker.job_executions as e join chaos.started_or_recorded as next using (job_id)
        where e.outcome in ('succeeded', 'cancelled') and next.execution > e.execution
    """,
    "I1: the hook of a dead letter is enqueued once": """
        select coalesce(buried.job_id, hook.job_id) as job_id, coalesce(buried.execution, hook.execution), hooks
        from (select job_id, execution from chaos.buried where task = 'fail') as buried
        full join (select (payload -> 'dead' ->> 'id')::uuid as job_id,
                          (payload -> 'dead' ->> 'execution')::integer as execution, count(*) as hooks
                   from pgworker.jobs where payload ? 'dead' group by 1, 2) as hook using (job_id, execution)
        where hooks is distinct from 1 or buried.job_id is null
    """,
    "I2: a lease is taken only when its time is over or its worker has ended": """
        select taken.*, e.job_id, e.execution, e.outcome, e.cause
        from chaos.lease_taken as taken join chaos.recorded as r using (lease_id, xid)
        join pgworker.job_executions as e using (job_id, execution)
        where taken.expires_at > taken.at and taken.worker_ended_at is null and e.cause is not null
    """,
    "I3: what was cancelled while it waited did not start": """
        select e.job_id, e.execution, s.who
        from pgworker.job_executions as e join chaos.started as s using (job_id, execution)
        where e.outcome = 'cancelled' and e.lease_id is null
    """,
    "I3: nothing is cancelled that nobody has asked for": """
        select job_id, execution, cause from pgworker.job_executions as e
        where outcome = 'cancelled' and not exists (select from chaos.asked where asked.job_id = e.job_id)
    """,
    "I3: what must fail has not succeeded": """
        select e.job_id, e.execution, e.failures, jobs.payload
        from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
        where jobs.task = 'fail' and e.outcome = 'succeeded' and e.failures < (payload ->> 'times')::integer
    """,
    "I3: what was recorded stays as it is": """
        select * from chaos.rewritten
    """,
    "I3: an execution starts once": """
        select job_id, execution, array_agg(lease_id), array_agg(who) from chaos.started
        where lease_id in (select lease_id from chaos.leased)
        group by job_id, execution having count(*) > 1
    """,
    "I3: a claim is forgotten only by a server that crashed": """
        select * from chaos.started where lease_id is null or lease_id not in (select lease_id from chaos.leased)
    """,
    "I3: an execution that did not start did not succeed": """
        select e.job_id, e.execution, task from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
        where e.outcome = 'succeeded'
          and not exists (select from chaos.started as s
                          where s.job_id = e.job_id and s.execution = e.execution and s.lease_id = e.lease_id)
    """,
    "I4: what has not begun is not charged": """
        select e.job_id, e.execution, e.outcome, e.cause from pgworker.job_executions as e
        where e.outcome in ('failed', 'timed_out', 'crashed')
          and e.started_at is not null -- else nobody could tell what ran when its whole pool had died
          and not exists (select from chaos.began as b
                          where b.job_id = e.job_id and b.execution = e.execution and b.lease_id = e.lease_id)
    """,
    "I4: a reclaim charges no more than could run at once": """
        select e.lease_id, leased.slots, count(*) as charged
        from pgworker.job_executions as e join chaos.leased using (lease_id)
        where e.outcome in ('timed_out', 'crashed') and e.cause is not null
        group by e.lease_id, leased.slots having count(*) > leased.slots
    """,
    "I4: nothing runs whose attempts are used up": """
        select job_id, execution, outcome, failures, jobs.max_attempts
        from pgworker.job_executions as e join pgworker.jobs on jobs.id = e.job_id
        where e.outcome not in ('failed', 'timed_out', 'crashed', 'cancelled') -- their own failure is counted already
          and e.failures >= jobs.max_attempts
    """,
    "I4: no job is given up before its attempts are used up": """
        select * from chaos.buried where failures < max_attempts
    """,
    "I5: no execution is claimed before the one before it was recorded": """
        select held.job_id, r.execution, r.moment as recorded, held.execution as next, leased.moment as claimed
        from chaos.leased, unnest(leased.job_ids, leased.executions) as held(job_id, execution)
        join chaos.recorded as r using (job_id)
        where r.execution < held.execution and r.moment > leased.moment
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
    "I7: what a worker held that has ended is taken back in time": f"""
        select * from chaos.lease_taken where at - worker_ended_at > {RECOVERY} * interval '1 second'
    """,
    "I7: a worker that has drained holds nothing": """
        select * from chaos.lease_taken as taken
        where at > worker_ended_at and worker_ended_how ~ '^worker \\d+ \\(pid \\d+\\) ended(, as asked|$)'
          and exists (select from chaos.began where began.lease_id = taken.lease_id)
    """,
    "I8: a job runs with its own arguments and for its own org": f"""
        select s.*, jobs.payload ->> 'key' as own_key, jobs.org_id as own_org
        from chaos.started as s join pgworker.jobs on jobs.id = s.job_id
        where s.key <> coalesce(jobs.payload ->> 'key', '{NONE}') or s.org_id <> coalesce(jobs.org_id, '{NONE}')
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
    for said, table in ((ROLLED_BACK, "rolled_back"), (ASKED, "asked"), (CANCELLED, "cancelled")):
        _copy(connection, f"{table} (job_id)", (line[1:] for line in words if line[0] == said))
    for ledger in worker_ledgers(directory):
        lines = list(read(ledger))
        started = ([*line[1:6], ledger.stem] for line in lines if line[0] == STARTED)
        _copy(connection, "started (job_id, execution, lease_id, key, org_id, who)", started)
        for word, table in ((BEGAN, "began"), (ACKED, "acknowledged"), (FENCED, "refused")):
            _copy(
                connection, f"{table} (job_id, execution, lease_id)", (line[1:4] for line in lines if line[0] == word)
            )


def check(
    connection: Connection[Any], *, has_steady_clock: bool = True, has_crashed: bool = False
) -> dict[str, list[tuple[Any, ...]]]:
    """What breaks which invariant; nothing when all is well. What compares times needs a clock that was never set; a
    server that crashed forgets claims, which it commits asynchronously."""
    connection.execute("analyze")
    unasked = (frozenset() if has_steady_clock else BY_THE_CLOCK) | (BY_A_CRASH if has_crashed else frozenset())
    return offences(connection, {name: query for name, query in INVARIANTS.items() if name not in unasked})


def _copy(connection: Connection[Any], where: str, rows: Iterable[list[str]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"copy chaos.{where} from stdin".encode()) as copy:
        for row in rows:
            copy.write_row(row)


INVARIANTS: Mapping[str, str] = {**STORED, **WITNESSED, **LEDGERS}

BY_THE_CLOCK = frozenset(
    {
        "I5: executions of a job never overlap",
        "I7: what a worker held that has ended is taken back in time",
        "I7: a worker that has drained holds nothing",
    }
)
"""Invariants that compare moments of the database's clock."""

BY_A_CRASH = frozenset({"I3: a claim is forgotten only by a server that crashed"})
"""Invariants that don't hold where the server has crashed, or a standby that lagged was promoted."""
