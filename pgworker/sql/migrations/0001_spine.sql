-- The storage of pgworker: every table has one verb.
--
--   jobs              what to run          written once at enqueue, never updated
--   job_queue         what waits           inserted and deleted, never updated
--   job_leases        who runs what        one row per claimed batch
--   job_executions    what happened        appended, one row per ended execution
--   dead_letter_jobs  what was given up    a full copy, with why
--   worker_heartbeats who is alive         one row per worker process
--   queues            rules of a queue     paused or not
--
-- No foreign keys between them: a KEY SHARE lock on jobs at every settle would make MultiXacts.

create type pgworker.execution_outcome as enum
    ('succeeded', 'failed', 'timed_out', 'cancelled', 'crashed', 'lost', 'released', 'snoozed');
comment on type pgworker.execution_outcome is
    'failed, timed_out and crashed are charged against max_attempts; lost, released and snoozed are not';

-- Time-ordered ids (RFC 9562, UUID version 7): 48 bits of milliseconds, 12 bits of the millisecond's fraction
-- (method 3 of its section 6.2), 62 random bits. The first half of the id is its time.
-- Not immutable, as date_part is not: so the planner puts the expression in the place of the call.
create function pgworker.uuid7_time_half(at timestamptz) returns bigint
    language sql stable strict parallel safe
    return (((date_part('epoch', at) * 1000000)::bigint / 1000) << 16) | 28672
        | ((((date_part('epoch', at) * 1000000)::bigint % 1000) * 4096) / 1000);

create function pgworker.uuid7(at timestamptz) returns uuid
    language sql volatile strict parallel safe
    return encode(int8send(pgworker.uuid7_time_half(at))
        || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid;

create function pgworker.uuid7_first(at timestamptz) returns uuid
    language sql immutable strict parallel safe
    return encode(int8send((((date_part('epoch', at) * 1000)::bigint) << 16)) || int8send(0), 'hex')::uuid;
comment on function pgworker.uuid7_first is 'the lower bound of the ids of this time: the border of a partition';

create function pgworker.uuid7_at(id uuid) returns timestamptz
    language sql immutable strict parallel safe
    return to_timestamp((('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint) / 1000.0);

-- What columns may hold. As domains and not as checks of a table, whose expressions each statement would parse anew.
-- What drivers are sent is of the type beneath, but an array of a domain is not: aggregate queue::text.
create domain pgworker.queue_name as text check (length(value) between 1 and 128 and value !~ '[^A-Za-z0-9_.:-]');
create domain pgworker.task_name as text check (length(value) between 1 and 256 and value !~ '[^A-Za-z0-9_.:-]');
create domain pgworker.priority as smallint check (value between 0 and 9);
create domain pgworker.attempts as smallint check (value > 0);
create domain pgworker.milliseconds as bigint check (value > 0);
create domain pgworker.payload as jsonb
    check (jsonb_typeof(value) = 'object' and pg_column_size(value) <= 8 * 1024 * 1024);
create domain pgworker.headers as jsonb
    check (jsonb_typeof(value) = 'object' and pg_column_size(value) <= 512 * 1024);
create domain pgworker.org_id as text check (length(value) between 1 and 256);
create domain pgworker.job_key as text check (length(value) between 1 and 512);

create table pgworker.jobs (
    id              uuid not null primary key,
    created_at      timestamptz not null,
    run_at          timestamptz not null,
    timeout_ms      pgworker.milliseconds,
    priority        pgworker.priority not null,
    max_attempts    pgworker.attempts not null,
    queue           pgworker.queue_name not null,
    task            pgworker.task_name not null,
    payload         pgworker.payload not null,
    org_id          pgworker.org_id,
    unique_key      pgworker.job_key,
    concurrency_key pgworker.job_key,
    headers         pgworker.headers
) partition by range (id);
create table pgworker.jobs_default partition of pgworker.jobs default;

create table pgworker.job_queue (
    job_id    uuid not null primary key,
    run_at    timestamptz not null,
    execution integer not null,
    priority  smallint not null,
    failures  smallint not null,
    queue     text not null,
    task      text not null,
    org_id    text
) with (
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 1000
);
create index job_queue_claim on pgworker.job_queue (queue, priority, run_at, job_id);
comment on column pgworker.job_queue.execution is 'the number that the next execution gets';
comment on column pgworker.job_queue.failures is 'failures charged so far';

create table pgworker.job_leases (
    lease_id   uuid not null primary key,
    worker_id  uuid not null,
    claimed_at timestamptz not null,
    expires_at timestamptz not null,
    slots      smallint not null,
    job_ids    uuid[] not null,
    executions integer[] not null,
    failures   smallint[] not null,
    cancelled  uuid[] not null default '{}'
) with (
    vacuum_truncate = off, fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);
alter table pgworker.job_leases alter column job_ids set storage external; -- to compress them takes as long as to find them
comment on column pgworker.job_leases.lease_id is 'the fencing token: random, made by the worker before it asks';
comment on column pgworker.job_leases.job_ids is 'in run order; executions and failures stand at the same positions';

create table pgworker.job_executions (
    job_id      uuid not null,
    lease_id    uuid,
    worker_id   uuid,
    started_at  timestamptz,
    finished_at timestamptz not null,
    execution   integer not null,
    outcome     pgworker.execution_outcome not null,
    position    smallint,
    failures    smallint not null,
    error       jsonb,
    result      jsonb,
    cause       text,
    primary key (job_id, execution)
) partition by range (job_id);
create table pgworker.job_executions_default partition of pgworker.job_executions default;
comment on column pgworker.job_executions.failures is 'failures charged to the job, this execution included';
comment on column pgworker.job_executions.cause is 'why an execution ended that could not say so itself';

create table pgworker.dead_letter_jobs (
    job_id          uuid not null primary key,
    died_at         timestamptz not null,
    created_at      timestamptz not null,
    run_at          timestamptz not null,
    timeout_ms      bigint,
    execution       integer not null,
    priority        smallint not null,
    max_attempts    smallint not null,
    failures        smallint not null,
    outcome         pgworker.execution_outcome not null,
    queue           text not null,
    task            text not null,
    payload         jsonb not null,
    org_id          text,
    unique_key      text,
    concurrency_key text,
    headers         jsonb,
    error           jsonb,
    cause           text
);
create index dead_letter_jobs_died_at on pgworker.dead_letter_jobs (died_at desc, job_id);

create table pgworker.worker_heartbeats (
    worker_id  uuid not null primary key,
    pool_id    uuid not null,
    host       text not null,
    pid_space  text not null,
    pid        integer not null,
    number     smallint not null,
    queues     text[] not null,
    started_at timestamptz not null,
    beat_at    timestamptz not null,
    ended_at   timestamptz,
    ended_how  text
) with (vacuum_truncate = off, fillfactor = 50);
comment on column pgworker.worker_heartbeats.worker_id is 'one process incarnation: never a host name and a pid, which come back';
comment on column pgworker.worker_heartbeats.pid_space is
    'where pid means something: the boot of the kernel and, after a colon, the PID namespace';
comment on column pgworker.worker_heartbeats.number is 'its own in its pool, from 0: never seen twice at a time';
-- Those that have ended stay for a week, and may be many. A beat changes neither column, so that it stays a HOT update.
create index worker_heartbeats_living on pgworker.worker_heartbeats (host) where ended_at is null;

create table pgworker.queues (
    name       pgworker.queue_name not null primary key,
    paused     boolean not null default false,
    updated_at timestamptz not null default clock_timestamp()
);

-- Partitions: one a day of jobs and of job_executions. A table made beside and attached takes SHARE UPDATE EXCLUSIVE
-- on the parent where CREATE TABLE ... PARTITION OF takes ACCESS EXCLUSIVE; the short lock_timeout keeps claims from
-- queueing behind this DDL while it waits for a reader.
create function pgworker.create_partition(day date) returns boolean
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set timezone = 'UTC'
as $$
declare
    parent text;
    child text;
    made boolean := false;
begin
    perform pg_advisory_xact_lock(1885828976, 0);
    foreach parent in array array['jobs', 'job_executions'] loop
        child := parent || '_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass('pgworker.' || child) is not null;
        execute format('create table pgworker.%I (like pgworker.%I including defaults including constraints including comments)',
                       child, parent);
        execute format('alter table pgworker.%I attach partition pgworker.%I for values from (%L) to (%L)',
                       parent, child, pgworker.uuid7_first(day::timestamptz), pgworker.uuid7_first((day + 1)::timestamptz));
        made := true;
    end loop;
    return made;
end $$;

create function pgworker.check_job_id(id uuid) returns void
    language plpgsql volatile strict
as $$
begin
    if substring(id::text from 15 for 1) <> '7'
       or abs(extract(epoch from clock_timestamp() - pgworker.uuid7_at(id))) > 86400 then
        raise exception 'a job id must be a UUID version 7 within a day of the server''s clock'
            using errcode = 'invalid_parameter_value';
    end if;
end $$;

-- Enqueue: job and queue row in the caller's transaction. One array per column, all of one length. A null in `ids`,
-- `run_ats`, `org_ids` or `headers` means none given; a null in `timeouts_ms` means no timeout.
-- The ids of one call count up from one random number (RFC 9562, 6.2, method 2): drawing it takes a fifth of the time
-- of an insert where PostgreSQL has no OpenSSL and opens /dev/urandom each time. But each has a time of its own: a claim
-- knows where the last one ended by run_at and the first half of the id.
create function pgworker.enqueue_jobs(
    tasks text[], payloads jsonb[], queues text[], priorities smallint[], run_ats timestamptz[],
    max_attempts smallint[], timeouts_ms bigint[], org_ids text[], headers jsonb[], ids uuid[]
) returns uuid[]
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    first bigint := ('x' || encode(substring(uuid_send(gen_random_uuid()) from 9), 'hex'))::bit(64)::bigint;
    stored uuid[];
    created timestamptz[];
    due timestamptz[];
    asleep text;
begin
    if array_remove(ids, null) <> '{}' then
        perform pgworker.check_job_id(given.id) from unnest(ids) as given(id);
    end if;
    -- unnest in select lists: in FROM it takes three times as long.
    select array_agg(coalesce(asked.id, encode(int8send(pgworker.uuid7_time_half(now)) || int8send(first + asked.place), 'hex')::uuid)),
           array_agg(now), array_agg(greatest(asked.run_at, now))
    into stored, created, due
    from (select given.*, clock_timestamp() as now -- for each of them
          from (select generate_series(1, cardinality(tasks)) as place, unnest(ids) as id, unnest(run_ats) as run_at) as given
          offset 0) as asked;
    insert into pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id, headers)
    select unnest(stored), unnest(created), unnest(due), unnest(timeouts_ms), unnest(priorities), unnest(max_attempts),
           unnest(queues), unnest(tasks), unnest(payloads), unnest(org_ids), unnest(headers);
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select unnest(stored), unnest(due), 1, unnest(priorities), 0, unnest(queues), unnest(tasks), unnest(org_ids);

    -- A sleeping pool holds a shared advisory lock on its queue's name. Notify only then, and once: a commit that
    -- notifies takes a lock that all notifying commits of the cluster share. What a transaction says twice PostgreSQL says
    -- once: a byte of an id keeps apart what is said of others.
    for asleep in
        select string_agg(waiting.queue || '=' || waiting.jobs, ',')
        from (select given.queue, count(*) as jobs
              from unnest(queues, run_ats) as given(queue, run_at)
              where given.run_at is null or given.run_at <= clock_timestamp()
              group by given.queue) as waiting
        where pgworker.somebody_sleeps(waiting.queue)
    loop
        if asleep is not null then
            perform pg_notify('pgworker', left(asleep, 7900) || ',' || get_byte(uuid_send(stored[1]), 15));
        end if;
    end loop;
    return coalesce(stored, '{}');
end $$;

-- What a settle asks for some jobs only: those that go on, those it was told of before. By functions, as its plan would
-- lock every partition else, and be made anew each time, which takes as long as the rest of it.
create function pgworker.stored_job(job_id uuid) returns setof pgworker.jobs
    language plpgsql stable rows 1 set search_path = pg_catalog, pg_temp
as $$
begin
    return query select * from pgworker.jobs where jobs.id = stored_job.job_id;
end $$;

create function pgworker.is_recorded(job_id uuid, execution integer) returns boolean
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from pgworker.job_executions e
                   where e.job_id = is_recorded.job_id and e.execution = is_recorded.execution);
end $$;

-- Sleepers share the lock. Who gets it alone knows that there is none; who can share it while it can't be had alone,
-- that there is one. Neither: another enqueuer is asking this very moment, so ask again, and in doubt notify.
create function pgworker.somebody_sleeps(queue text) returns boolean
    language plpgsql volatile
as $$
declare
    name integer := pg_catalog.hashtext(queue);
begin
    for attempt in 1..10 loop
        if pg_catalog.pg_try_advisory_lock(1885828977, name) then
            perform pg_catalog.pg_advisory_unlock(1885828977, name);
            return false;
        end if;
        if pg_catalog.pg_try_advisory_lock_shared(1885828977, name) then
            perform pg_catalog.pg_advisory_unlock_shared(1885828977, name);
            return true;
        end if;
    end loop;
    return true;
end $$;

create function pgworker.enqueue(
    task text, payload jsonb default '{}', queue text default 'default', priority integer default 5,
    run_at timestamptz default null, max_attempts integer default 25, timeout interval default '30 minutes',
    org_id text default null, headers jsonb default null, id uuid default null
) returns uuid
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    now timestamptz := clock_timestamp();
    due timestamptz := greatest(run_at, now);
begin
    if id is null then
        id := pgworker.uuid7(now);
    else
        perform pgworker.check_job_id(id);
    end if;
    insert into pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id, headers)
    values (id, now, due, extract(epoch from timeout) * 1000, priority, max_attempts, queue, task, payload, org_id, headers);
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    values (id, due, 1, priority, 0, queue, task, org_id);
    if due = now and pgworker.somebody_sleeps(queue) then
        perform pg_notify('pgworker', queue || '=1,' || get_byte(uuid_send(id), 15));
    end if;
    return id;
end $$;
comment on function pgworker.enqueue is
    'Enqueue one job in this transaction; timeout => null means none. For psql, triggers and other languages, too.';

-- Many jobs of one task that differ in nothing but their payloads: half the work of those above.
create function pgworker.enqueue_many(
    task text, payloads jsonb[], queue text default 'default', priority integer default 5,
    run_at timestamptz default null, max_attempts integer default 25, timeout interval default '30 minutes',
    org_id text default null, headers jsonb default null
) returns uuid[]
    language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    now timestamptz := clock_timestamp();
    due timestamptz := greatest(run_at, now);
    first bigint := ('x' || encode(substring(uuid_send(gen_random_uuid()) from 9), 'hex'))::bit(64)::bigint;
    stored uuid[];
    -- Of the types of the columns: they are checked here, once, and not for each row.
    of_task pgworker.task_name := task;
    to_queue pgworker.queue_name := queue;
    with_priority pgworker.priority := priority;
    attempts pgworker.attempts := max_attempts;
    timeout_ms pgworker.milliseconds := extract(epoch from timeout) * 1000;
    of_org pgworker.org_id := org_id;
    with_headers pgworker.headers := headers;
begin
    select array_agg(encode(int8send(pgworker.uuid7_time_half(at)) || int8send(first + place), 'hex')::uuid) into stored
    from (select place, clock_timestamp() as at from generate_series(1, cardinality(payloads)) as place offset 0) as each;
    insert into pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id, headers)
    select unnest(stored), now, due, timeout_ms, with_priority, attempts, to_queue, of_task, unnest(payloads), of_org, with_headers;
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select unnest(stored), due, 1, with_priority, 0, to_queue, of_task, of_org;
    if due = now and cardinality(stored) > 0 and pgworker.somebody_sleeps(queue) then
        perform pg_notify('pgworker', queue || '=' || cardinality(stored) || ',' || get_byte(uuid_send(stored[1]), 15));
    end if;
    return coalesce(stored, '{}');
end $$;
comment on function pgworker.enqueue_many is
    'Enqueue jobs of one task in this transaction, one for each payload; their ids, in order. Options as of pgworker.enqueue.';

-- What people ask. One row per job; a job that is nowhere shows as LOST, never as null.
create view pgworker.job_status as
select j.id, j.queue::text, j.task::text, j.org_id::text, j.priority::smallint, j.max_attempts::smallint, j.created_at,
       coalesce(q.run_at, j.run_at) as run_at,
       case when d.job_id is not null then 'dead_letter'
            when q.failures > 0 then 'failed'
            when q.run_at > clock_timestamp() then 'scheduled'
            when q.job_id is not null then 'pending'
            when l.lease_id is not null then 'running'
            when e.outcome = 'succeeded' then 'succeeded'
            when e.outcome = 'cancelled' then 'cancelled'
            else 'LOST' end as status,
       coalesce(d.execution, q.execution - 1, l.execution, e.execution, 0) as execution,
       coalesce(d.failures, q.failures, l.failures, e.failures, 0) as failures,
       l.lease_id, l.worker_id, e.outcome as last_outcome, e.finished_at, e.error, e.result, e.cause
from pgworker.jobs j
left join pgworker.job_queue q on q.job_id = j.id
left join pgworker.dead_letter_jobs d on d.job_id = j.id
left join lateral (select * from pgworker.job_executions x where x.job_id = j.id order by x.execution desc limit 1) e on true
left join (select held.job_id, held.execution, held.failures, lease.lease_id, lease.worker_id
           from pgworker.job_leases lease,
                unnest(lease.job_ids, lease.executions, lease.failures) as held(job_id, execution, failures)) l
       on l.job_id = j.id and l.execution > coalesce(e.execution, 0);

create function pgworker.job_status(id uuid) returns text
    language sql stable parallel safe
as $$
    select case
        when exists (select from pgworker.dead_letter_jobs d where d.job_id = $1) then 'dead_letter'
        when q.failures > 0 then 'failed'
        when q.run_at > clock_timestamp() then 'scheduled'
        when q.job_id is not null then 'pending'
        when exists (select from pgworker.job_leases l where $1 = any(l.job_ids)
                     and l.executions[array_position(l.job_ids, $1)] > coalesce(e.execution, 0)) then 'running'
        when e.outcome = 'succeeded' then 'succeeded'
        when e.outcome = 'cancelled' then 'cancelled'
        when exists (select from pgworker.jobs j where j.id = $1) then 'LOST' end
    from (select $1 as id) as asked
    left join pgworker.job_queue q on q.job_id = asked.id
    left join lateral (select x.execution, x.outcome from pgworker.job_executions x where x.job_id = asked.id
                       order by x.execution desc limit 1) e on true
$$;
comment on function pgworker.job_status(uuid) is 'the status of one job; null: no such job';

create view pgworker.executions as
select job_id, execution, outcome::text as outcome, worker_id, lease_id, position, failures,
       started_at, finished_at, error, result, cause
from pgworker.job_executions
union all
select held.job_id, held.execution, 'running', lease.worker_id, lease.lease_id, held.position::smallint, held.failures,
       null, null, null, null, null
from pgworker.job_leases lease,
     unnest(lease.job_ids, lease.executions, lease.failures) with ordinality as held(job_id, execution, failures, position)
where not exists (select from pgworker.job_executions e where e.job_id = held.job_id and e.execution = held.execution);

revoke all on all tables in schema pgworker from public;
revoke all on all functions in schema pgworker from public;
revoke all on schema pgworker from public;

select pgworker.create_partition((clock_timestamp() at time zone 'UTC')::date + ahead) from generate_series(-1, 2) as ahead;
