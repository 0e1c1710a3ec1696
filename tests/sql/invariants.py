"""What must always be true of the stored jobs: each invariant a query that returns what breaks it.

`STORED` holds at any moment, in the snapshot of one statement. `WITNESSED` compares what is stored with what was seen
from outside: the tables and triggers of `WITNESSES`, which a test creates in its own database, fills with its ledgers,
and asks when all is quiet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import Connection

_PLACES = """
    select job_id, 'waits' as place from pgworker.job_queue
    union all
    select held.job_id, 'runs'
    from pgworker.job_leases as lease, unnest(lease.job_ids, lease.executions) as held(job_id, execution)
    where not exists (select from pgworker.job_executions as e
                      where e.job_id = held.job_id and e.execution = held.execution)
    union all
    select job_id, 'is a dead letter' from pgworker.dead_letter_jobs
    union all
    select job_id, 'has ended'
    from (select distinct on (job_id) job_id, outcome
          from pgworker.job_executions order by job_id, execution desc) as last
    where outcome in ('succeeded', 'cancelled')
"""

_HELD = """
    select lease.lease_id, held.job_id, held.execution, held.failures
    from pgworker.job_leases as lease,
         unnest(lease.job_ids, lease.executions, lease.failures) as held(job_id, execution, failures)
"""

STORED: Mapping[str, str] = {
    "I1: every job is in exactly one place": f"""
        select jobs.id, array_agg(place) from pgworker.jobs left join ({_PLACES}) as places on places.job_id = jobs.id
        group by jobs.id having count(place) <> 1
    """,
    "I1: whatever is in a place has its job": f"""
        select job_id, place from ({_PLACES}) as places
        where place <> 'is a dead letter' -- a full copy: retention drops the job before it
          and not exists (select from pgworker.jobs where jobs.id = places.job_id)
    """,
    "I2: what a lease holds was settled by no other": f"""
        select held.*, e.lease_id as settled_by
        from ({_HELD}) as held join pgworker.job_executions as e using (job_id, execution)
        where e.lease_id is distinct from held.lease_id
    """,
    "I3: a position of a lease is recorded once": """
        select lease_id, position, array_agg((job_id, execution))
        from pgworker.job_executions where position is not null
        group by lease_id, position having count(*) > 1
    """,
    "I3: execution numbers go on": f"""
        select next.job_id, next.execution, max(e.execution) as recorded
        from (select job_id, execution from pgworker.job_queue
              union all select job_id, execution from ({_HELD}) as held
              where not exists (select from pgworker.job_executions as e
                                where e.job_id = held.job_id and e.execution = held.execution)) as next
        join pgworker.job_executions as e using (job_id)
        group by next.job_id, next.execution having next.execution <= max(e.execution)
    """,
    "I4: no more failures than attempts": """
        select job_id, failures, max_attempts
        from (select job_id, failures, 0 as spare from pgworker.job_executions
              union all select job_id, failures, 1 from pgworker.job_queue) as charged
        join pgworker.jobs on jobs.id = charged.job_id
        where failures + spare > max_attempts
    """,
    # From 0 again after a dead letter; a failure of a cancelled job is counted and recorded as cancelled.
    "I4: failures count the executions that are charged": """
        select job_id, execution, outcome, before, failures
        from (select job_id, execution, outcome, failures,
                     coalesce(lag(failures) over (partition by job_id order by execution), 0) as before,
                     case when outcome in ('failed', 'timed_out', 'crashed') then 1 else 0 end as charge
              from pgworker.job_executions) as counted
        where failures not in (before + charge, charge) and not (outcome = 'cancelled' and failures in (before + 1, 1))
    """,
    "I5: executions of a job never overlap": """
        select job_id, execution, finished_at, next_started_at
        from (select job_id, execution, finished_at,
                     min(started_at) over (partition by job_id order by execution
                                           rows between 1 following and unbounded following) as next_started_at
              from pgworker.job_executions) as run
        where finished_at > next_started_at
    """,
}

WITNESSES = """
create schema chaos;
-- written by handlers in the transactions of their jobs; nothing keeps an effect from happening twice
create table chaos.effect (job_id uuid not null, execution integer not null);
-- ledgers of those who enqueue, settle and cancel: what they were told
create table chaos.enqueued (job_id uuid not null);
create table chaos.rolled_back (job_id uuid not null);
create table chaos.acknowledged (job_id uuid not null, execution integer not null, lease_id uuid not null);
create table chaos.refused (job_id uuid not null, execution integer not null, lease_id uuid not null);
create table chaos.cancelled (job_id uuid not null);
-- when executions were recorded and leases ended, seen under the locks of those who did it
create sequence chaos.moment; -- a clock may be set back
create table chaos.recorded
    (job_id uuid, execution integer, lease_id uuid,
     xid xid8, at timestamptz, moment bigint default nextval('chaos.moment'));
create table chaos.lease_ended
    (lease_id uuid, xid xid8, at timestamptz, moment bigint default nextval('chaos.moment'));

create function chaos.see_recorded() returns trigger language plpgsql as $$ begin
    insert into chaos.recorded
    select job_id, execution, lease_id, pg_current_xact_id(), clock_timestamp() from seen;
    return null;
end $$;
create trigger see_recorded after insert on pgworker.job_executions referencing new table as seen
    for each statement execute function chaos.see_recorded();

create function chaos.see_lease_ended() returns trigger language plpgsql as $$ begin
    insert into chaos.lease_ended select lease_id, pg_current_xact_id(), clock_timestamp() from seen;
    return null;
end $$;
create trigger see_lease_ended after delete on pgworker.job_leases referencing old table as seen
    for each statement execute function chaos.see_lease_ended();
"""

EFFECTS = "I6: an effect happened if and only if its execution succeeded, once"

WITNESSED: Mapping[str, str] = {
    "I1: an acknowledged enqueue is stored": """
        select job_id from chaos.enqueued where not exists (select from pgworker.jobs where jobs.id = enqueued.job_id)
    """,
    "I1: a rolled-back enqueue is not": """
        select job_id from chaos.rolled_back join pgworker.jobs on jobs.id = rolled_back.job_id
    """,
    "I1: at the end nothing waits or runs": """
        select job_id::text from pgworker.job_queue union all select lease_id::text from pgworker.job_leases
    """,
    "I2: nothing is settled after its lease was lost": """
        select recorded.*, lease_ended.at as ended_at from chaos.recorded join chaos.lease_ended using (lease_id)
        where recorded.moment > lease_ended.moment and recorded.xid <> lease_ended.xid
    """,
    # A reclaim records under the lease that it took, but always with a cause.
    "I2: a settle that was refused left no row": """
        select refused.*, e.outcome
        from chaos.refused join pgworker.job_executions as e using (job_id, execution, lease_id)
        where e.cause is null
    """,
    "I3: a settle that was acknowledged has its row": """
        select acknowledged.* from chaos.acknowledged
        where not exists (select from pgworker.job_executions as e
                          where e.job_id = acknowledged.job_id and e.execution = acknowledged.execution
                            and e.lease_id = acknowledged.lease_id and e.cause is null)
    """,
    "I3: a job cancelled while it waited never runs again": """
        select cancelled.job_id, e.execution, e.outcome
        from chaos.cancelled join pgworker.job_executions as e using (job_id)
        where e.outcome <> 'cancelled'
          and e.execution > (select max(execution) from pgworker.job_executions as c
                             where c.job_id = cancelled.job_id and c.outcome = 'cancelled')
    """,
    "nothing is kept of what jobs said that have ended for good": """
        select job_id, execution from pgworker.job_progress as said
        where not exists (select from pgworker.job_queue as q where q.job_id = said.job_id)
          and not exists (select from pgworker.job_leases as lease where said.job_id = any (lease.job_ids))
          and not exists (select from pgworker.dead_letter_jobs as dead where dead.job_id = said.job_id)
    """,
    EFFECTS: """
        select job_id, execution, effects, outcome
        from (select job_id, execution, count(*) as effects from chaos.effect group by job_id, execution) as effect
        full join (select job_id, execution, outcome from pgworker.job_executions as e
                   join pgworker.jobs on jobs.id = e.job_id
                   where jobs.task like 'effect%' and jobs.task not like '%:dead_letter'
                     and outcome = 'succeeded') as success using (job_id, execution)
        where effects is distinct from 1 or outcome is null
    """,
}


def offences(connection: Connection[Any], invariants: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """What breaks which invariant: empty when all is well."""
    found = {name: connection.execute(query.encode()).fetchall() for name, query in invariants.items()}
    return {name: rows for name, rows in found.items() if rows}
