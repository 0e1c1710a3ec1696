-- The schema that all migrations together make, read from the catalogs of a migrated database; to read, not to run.
-- Partitions of days are left out. tests/sql/test_schema.py compares it, and says how to write it anew.


-- types

create type pgworker.execution_outcome as enum ('succeeded', 'failed', 'timed_out', 'cancelled', 'crashed', 'lost', 'released', 'snoozed');


-- domains

create domain pgworker.attempts as smallint CHECK ((VALUE > 0));

create domain pgworker.headers as jsonb CHECK (((jsonb_typeof(VALUE) = 'object'::text) AND (pg_column_size(VALUE) <= (512 * 1024))));

create domain pgworker.job_key as text CHECK (((length(VALUE) >= 1) AND (length(VALUE) <= 512)));

create domain pgworker.milliseconds as bigint CHECK ((VALUE > 0));

create domain pgworker.org_id as text CHECK (((length(VALUE) >= 1) AND (length(VALUE) <= 256)));

create domain pgworker.payload as jsonb CHECK (((jsonb_typeof(VALUE) = 'object'::text) AND (pg_column_size(VALUE) <= ((8 * 1024) * 1024))));

create domain pgworker.priority as smallint CHECK (((VALUE >= 0) AND (VALUE <= 9)));

create domain pgworker.queue_name as text CHECK ((((length(VALUE) >= 1) AND (length(VALUE) <= 128)) AND (VALUE !~ '[^A-Za-z0-9_.:-]'::text)));

create domain pgworker.task_name as text CHECK ((((length(VALUE) >= 1) AND (length(VALUE) <= 256)) AND (VALUE !~ '[^A-Za-z0-9_.:-]'::text)));


-- tables

create table pgworker.dead_letter_hooks (
    task text not null,
    handler pgworker.task_name not null,
    queue pgworker.queue_name not null,
    priority pgworker.priority not null,
    max_attempts pgworker.attempts not null,
    timeout_ms pgworker.milliseconds,
    constraint dead_letter_hooks_check CHECK (((handler)::text <> task)),
    constraint dead_letter_hooks_pkey PRIMARY KEY (task)
);

create table pgworker.dead_letter_jobs (
    job_id uuid not null,
    died_at timestamp with time zone not null,
    created_at timestamp with time zone not null,
    run_at timestamp with time zone not null,
    timeout_ms bigint,
    execution integer not null,
    priority smallint not null,
    max_attempts smallint not null,
    failures smallint not null,
    outcome pgworker.execution_outcome not null,
    queue text not null,
    task text not null,
    payload jsonb not null,
    org_id text,
    unique_key text,
    concurrency_key text,
    headers jsonb,
    error jsonb,
    cause text,
    constraint dead_letter_jobs_pkey PRIMARY KEY (job_id)
);

create table pgworker.job_executions (
    job_id uuid not null,
    lease_id uuid,
    worker_id uuid,
    started_at timestamp with time zone,
    finished_at timestamp with time zone not null,
    execution integer not null,
    outcome pgworker.execution_outcome not null,
    "position" smallint,
    failures smallint not null,
    error jsonb,
    result jsonb,
    cause text,
    constraint job_executions_pkey PRIMARY KEY (job_id, execution)
)
partition by RANGE (job_id);

create table pgworker.job_executions_default (
    job_id uuid not null,
    lease_id uuid,
    worker_id uuid,
    started_at timestamp with time zone,
    finished_at timestamp with time zone not null,
    execution integer not null,
    outcome pgworker.execution_outcome not null,
    "position" smallint,
    failures smallint not null,
    error jsonb,
    result jsonb,
    cause text,
    constraint job_executions_default_pkey PRIMARY KEY (job_id, execution)
)
partition of pgworker.job_executions DEFAULT;

create table pgworker.job_leases (
    lease_id uuid not null,
    worker_id uuid not null,
    claimed_at timestamp with time zone not null,
    expires_at timestamp with time zone not null,
    slots smallint not null,
    job_ids uuid[] not null,
    executions integer[] not null,
    failures smallint[] not null,
    cancelled uuid[] not null default '{}'::uuid[],
    constraint job_leases_pkey PRIMARY KEY (lease_id)
)
with (vacuum_truncate=off, fillfactor=70, autovacuum_vacuum_scale_factor=0.01, autovacuum_vacuum_threshold=1000, autovacuum_vacuum_cost_delay=0);

create table pgworker.job_progress (
    job_id uuid not null,
    execution integer not null,
    fraction real not null,
    message text not null,
    checkpoint jsonb,
    updated_at timestamp with time zone not null,
    constraint job_progress_checkpoint_check CHECK ((pg_column_size(checkpoint) <= (512 * 1024))),
    constraint job_progress_fraction_check CHECK (((fraction >= (0)::double precision) AND (fraction <= (1)::double precision))),
    constraint job_progress_message_check CHECK ((length(message) <= 1000)),
    constraint job_progress_pkey PRIMARY KEY (job_id)
)
with (fillfactor=50, vacuum_truncate=off, autovacuum_vacuum_scale_factor=0.05, autovacuum_vacuum_threshold=500, autovacuum_vacuum_cost_delay=0);

create table pgworker.job_queue (
    job_id uuid not null,
    run_at timestamp with time zone not null,
    execution integer not null,
    priority smallint not null,
    failures smallint not null,
    queue text not null,
    task text not null,
    org_id text,
    constraint job_queue_pkey PRIMARY KEY (job_id)
)
with (vacuum_truncate=off, autovacuum_vacuum_scale_factor=0.01, autovacuum_vacuum_threshold=1000, autovacuum_vacuum_cost_delay=0, autovacuum_analyze_scale_factor=0.1, autovacuum_analyze_threshold=1000);

create table pgworker.jobs (
    id uuid not null,
    created_at timestamp with time zone not null,
    run_at timestamp with time zone not null,
    timeout_ms pgworker.milliseconds,
    priority pgworker.priority not null,
    max_attempts pgworker.attempts not null,
    queue pgworker.queue_name not null,
    task pgworker.task_name not null,
    payload pgworker.payload not null,
    org_id pgworker.org_id,
    unique_key pgworker.job_key,
    concurrency_key pgworker.job_key,
    headers pgworker.headers,
    constraint jobs_pkey PRIMARY KEY (id)
)
partition by RANGE (id);

create table pgworker.jobs_default (
    id uuid not null,
    created_at timestamp with time zone not null,
    run_at timestamp with time zone not null,
    timeout_ms pgworker.milliseconds,
    priority pgworker.priority not null,
    max_attempts pgworker.attempts not null,
    queue pgworker.queue_name not null,
    task pgworker.task_name not null,
    payload pgworker.payload not null,
    org_id pgworker.org_id,
    unique_key pgworker.job_key,
    concurrency_key pgworker.job_key,
    headers pgworker.headers,
    constraint jobs_default_pkey PRIMARY KEY (id)
)
partition of pgworker.jobs DEFAULT;

create table pgworker.partition_writes (
    job_id uuid not null
);

create table pgworker.queues (
    name pgworker.queue_name not null,
    paused boolean not null default false,
    updated_at timestamp with time zone not null default clock_timestamp(),
    constraint queues_pkey PRIMARY KEY (name)
);

create table pgworker.schema_migrations (
    version integer not null,
    name text not null,
    checksum text not null,
    applied_at timestamp with time zone not null default clock_timestamp(),
    constraint schema_migrations_pkey PRIMARY KEY (version)
);

create table pgworker.served_tasks (
    digest bigint not null,
    tasks text[] not null,
    backoffs jsonb not null,
    announced_at timestamp with time zone not null default clock_timestamp(),
    constraint served_tasks_pkey PRIMARY KEY (digest)
);

create table pgworker.worker_heartbeats (
    worker_id uuid not null,
    pool_id uuid not null,
    host text not null,
    pid_space text not null,
    pid integer not null,
    number smallint not null,
    queues text[] not null,
    started_at timestamp with time zone not null,
    beat_at timestamp with time zone not null,
    ended_at timestamp with time zone,
    ended_how text,
    tasks_digest bigint,
    state text,
    runs jsonb not null default '[]'::jsonb,
    jobs_done bigint not null default 0,
    uss_bytes bigint,
    cpu_seconds double precision,
    constraint worker_heartbeats_pkey PRIMARY KEY (worker_id),
    constraint worker_heartbeats_state_check CHECK ((state = ANY (ARRAY['starting'::text, 'idle'::text, 'busy'::text, 'draining'::text, 'paused'::text])))
)
with (vacuum_truncate=off, fillfactor=50);


-- indexes

CREATE INDEX dead_letter_jobs_died_at ON pgworker.dead_letter_jobs USING btree (died_at DESC, job_id);

CREATE INDEX job_executions_default_finished_at_idx ON pgworker.job_executions_default USING btree (finished_at) WHERE (outcome = ANY (ARRAY['failed'::pgworker.execution_outcome, 'timed_out'::pgworker.execution_outcome, 'crashed'::pgworker.execution_outcome]));

CREATE INDEX job_executions_failed ON ONLY pgworker.job_executions USING btree (finished_at) WHERE (outcome = ANY (ARRAY['failed'::pgworker.execution_outcome, 'timed_out'::pgworker.execution_outcome, 'crashed'::pgworker.execution_outcome]));

CREATE INDEX job_queue_claim ON pgworker.job_queue USING btree (queue, priority, run_at, job_id);

CREATE INDEX worker_heartbeats_living ON pgworker.worker_heartbeats USING btree (host) WHERE (ended_at IS NULL);


-- views

create view pgworker.executions as
 SELECT job_executions.job_id,
    job_executions.execution,
    job_executions.outcome::text AS outcome,
    job_executions.worker_id,
    job_executions.lease_id,
    job_executions."position",
    job_executions.failures,
    job_executions.started_at,
    job_executions.finished_at,
    job_executions.error,
    job_executions.result,
    job_executions.cause
   FROM pgworker.job_executions
UNION ALL
 SELECT held.job_id,
    held.execution,
    'running'::text AS outcome,
    lease.worker_id,
    lease.lease_id,
    held."position"::smallint AS "position",
    held.failures,
    NULL::timestamp with time zone AS started_at,
    NULL::timestamp with time zone AS finished_at,
    NULL::jsonb AS error,
    NULL::jsonb AS result,
    NULL::text AS cause
   FROM pgworker.job_leases lease,
    LATERAL UNNEST(lease.job_ids, lease.executions, lease.failures) WITH ORDINALITY held(job_id, execution, failures, "position")
  WHERE NOT (EXISTS ( SELECT
           FROM pgworker.job_executions e
          WHERE e.job_id = held.job_id AND e.execution = held.execution));

create view pgworker.job_status as
 SELECT j.id,
    j.queue::text AS queue,
    j.task::text AS task,
    j.org_id::text AS org_id,
    j.priority::smallint AS priority,
    j.max_attempts::smallint AS max_attempts,
    j.created_at,
    COALESCE(q.run_at, j.run_at) AS run_at,
        CASE
            WHEN d.job_id IS NOT NULL THEN 'dead_letter'::text
            WHEN q.failures > 0 THEN 'failed'::text
            WHEN q.run_at > clock_timestamp() THEN 'scheduled'::text
            WHEN q.job_id IS NOT NULL THEN 'pending'::text
            WHEN l.lease_id IS NOT NULL THEN 'running'::text
            WHEN e.outcome = 'succeeded'::pgworker.execution_outcome THEN 'succeeded'::text
            WHEN e.outcome = 'cancelled'::pgworker.execution_outcome THEN 'cancelled'::text
            ELSE 'LOST'::text
        END AS status,
    COALESCE(d.execution, q.execution - 1, l.execution, e.execution, 0) AS execution,
    COALESCE(d.failures::integer, q.failures::integer, l.failures::integer, e.failures::integer, 0) AS failures,
    l.lease_id,
    l.worker_id,
    e.outcome AS last_outcome,
    e.finished_at,
    e.error,
    e.result,
    e.cause
   FROM pgworker.jobs j
     LEFT JOIN pgworker.job_queue q ON q.job_id = j.id
     LEFT JOIN pgworker.dead_letter_jobs d ON d.job_id = j.id
     LEFT JOIN LATERAL ( SELECT x.job_id,
            x.lease_id,
            x.worker_id,
            x.started_at,
            x.finished_at,
            x.execution,
            x.outcome,
            x."position",
            x.failures,
            x.error,
            x.result,
            x.cause
           FROM pgworker.job_executions x
          WHERE x.job_id = j.id
          ORDER BY x.execution DESC
         LIMIT 1) e ON true
     LEFT JOIN ( SELECT held.job_id,
            held.execution,
            held.failures,
            lease.lease_id,
            lease.worker_id
           FROM pgworker.job_leases lease,
            LATERAL UNNEST(lease.job_ids, lease.executions, lease.failures) held(job_id, execution, failures)) l ON l.job_id = j.id AND l.execution > COALESCE(e.execution, 0)
UNION ALL
 SELECT d.job_id AS id,
    d.queue,
    d.task,
    d.org_id,
    d.priority,
    d.max_attempts,
    d.created_at,
    d.run_at,
    'dead_letter'::text AS status,
    d.execution,
    d.failures,
    NULL::uuid AS lease_id,
    NULL::uuid AS worker_id,
    d.outcome AS last_outcome,
    d.died_at AS finished_at,
    d.error,
    NULL::jsonb AS result,
    d.cause
   FROM pgworker.dead_letter_jobs d
     LEFT JOIN LATERAL ( SELECT true AS is_stored
           FROM pgworker.jobs
          WHERE jobs.id = d.job_id
         OFFSET 0) job ON true
  WHERE job.is_stored IS NULL;


-- functions

CREATE OR REPLACE FUNCTION pgworker.check_job_id(id uuid)
 RETURNS void
 LANGUAGE plpgsql
 STRICT
AS $function$
begin
    if substring(id::text from 15 for 1) <> '7'
       or abs(extract(epoch from clock_timestamp() - pgworker.uuid7_at(id))) > 86400 then
        raise exception 'a job id must be a UUID version 7 within a day of the server''s clock'
            using errcode = 'invalid_parameter_value';
    end if;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.count_default_jobs()
 RETURNS bigint
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    select count(*) from (select from pgworker.jobs_default limit 10001) as stray
$function$;

CREATE OR REPLACE FUNCTION pgworker.count_rows(child text, key text, beyond uuid)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
    seen bigint;
begin
    execute format('select count(*) from (select from pgworker.%I where %I < $1 limit 100001) as seen', child, key)
        into seen using beyond;
    if seen > 100000 then
        select greatest(seen, reltuples::bigint) into seen
        from pg_class where oid = format('pgworker.%I', child)::regclass;
    end if;
    return seen;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.create_partition(day date)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '50ms'
 SET "TimeZone" TO 'UTC'
AS $function$
declare
    lowest uuid := pgworker.uuid7_first(day::timestamptz);
    beyond uuid := pgworker.uuid7_first((day + 1)::timestamptz);
    suffix text := '_' || to_char(day, 'YYYYMMDD');
    missing text[] := array(select parent from unnest(array['job_executions', 'jobs']) as parent
                            where to_regclass('pgworker.' || parent || suffix) is null);
    most constant integer := 10000;
    strays bigint;
    parent text;
begin
    if cardinality(missing) = 0 then
        return false;
    end if;
    perform pgworker.lock_keeping();
    foreach parent in array missing loop
        execute format('create table pgworker.%I (like pgworker.%I including defaults including constraints including comments)',
                       parent || suffix, parent);
    end loop;
    select count(*) into strays from (
        select from pgworker.jobs_default where id >= lowest and id < beyond
        union all
        select from pgworker.job_executions_default where job_id >= lowest and job_id < beyond
        limit most + 1) as stray;
    if strays > most then
        raise exception 'more than % rows of % are in the default partition', most, day
            using errcode = 'program_limit_exceeded';
    end if;
    if strays > 0 then
        -- The parents: whoever has a plan that doesn't know the new partition must be done before rows move there.
        perform pgworker.lock_for_ddl('job_executions', 'jobs');
    end if;
    perform pgworker.lock_for_ddl('job_executions_default', 'jobs_default'); -- as attaching would do, one by one
    foreach parent in array missing loop
        if strays > 0 then
            execute format('with moved as (delete from pgworker.%I where %I >= $1 and %2$I < $2 returning *) '
                           'insert into pgworker.%I select * from moved',
                           parent || '_default', case parent when 'jobs' then 'id' else 'job_id' end, parent || suffix)
                using lowest, beyond;
        end if;
        execute format('alter table pgworker.%I attach partition pgworker.%I for values from (%L) to (%L)',
                       parent, parent || suffix, lowest, beyond);
    end loop;
    return true;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.current_org()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
RETURN NULLIF(current_setting('pgworker.org_id'::text, true), ''::text);

CREATE OR REPLACE FUNCTION pgworker.drop_expired_partitions(older_than interval)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '50ms'
 SET "TimeZone" TO 'UTC'
AS $function$
declare
    until date := pgworker.expired_until(older_than);
    beyond uuid := pgworker.uuid7_first(until::timestamptz);
    kept_jobs text := 'jobs_before_' || to_char(until, 'YYYYMMDD');
    kept_executions text := 'job_executions_before_' || to_char(until, 'YYYYMMDD');
    tries integer := 0;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'partitions are dropped at READ COMMITTED only: what is written meanwhile must be seen'
            using errcode = 'invalid_transaction_state';
    end if;
    perform pgworker.lock_keeping();
    if exists (select from pgworker.expired_partitions('infinity') where kind = 'before' and day >= until) then
        return true; -- done already, by somebody who keeps no more than this
    end if;
    if exists (select from pgworker.expired_partitions(until) as expired
               where not exists (select from pg_trigger where tgname = 'note_write'
                                 and tgrelid = format('pgworker.%I', expired.child)::regclass)) then
        return false;
    end if;

    execute format('create table pgworker.%I (like pgworker.jobs including defaults including constraints '
                   'including comments including indexes, check (id < %L))', kept_jobs, beyond);
    execute format('create table pgworker.%I (like pgworker.job_executions including defaults including constraints '
                   'including comments including indexes, check (job_id < %L))', kept_executions, beyond);
    execute format('insert into pgworker.%I select job.* from pgworker.jobs_to_keep($1) as keep '
                   'cross join lateral (select * from pgworker.jobs where jobs.id = keep.id offset 0) as job', kept_jobs)
        using beyond;
    execute format('insert into pgworker.%I select e.* from pgworker.%I as keep cross join lateral '
                   '(select * from pgworker.job_executions where job_id = keep.id offset 0) as e', kept_executions, kept_jobs);
    execute format('delete from pgworker.jobs_default where id < $1 and not exists (select from pgworker.%I as keep '
                   'where keep.id = jobs_default.id) and id not in (select job_id from pgworker.partition_writes)', kept_jobs)
        using beyond;
    execute format('delete from pgworker.job_executions_default as e where job_id < $1 '
                   'and not exists (select from pgworker.%I as keep where keep.id = e.job_id) '
                   'and job_id not in (select job_id from pgworker.partition_writes)', kept_jobs)
        using beyond;

    loop
        tries := tries + 1;
        begin
            perform pgworker.swap_expired_partitions(until, beyond, kept_jobs, kept_executions);
            return true;
        exception when lock_not_available then
            if tries = 20 then
                raise;
            end if;
        end;
        perform pg_sleep(0.1 + 0.2 * random());
    end loop;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.enqueue(task text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 5, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT 25, timeout interval DEFAULT '00:30:00'::interval, org_id text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, id uuid DEFAULT NULL::uuid)
 RETURNS uuid
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
end $function$;

CREATE OR REPLACE FUNCTION pgworker.enqueue_dead_letter_hook()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
    hook pgworker.dead_letter_hooks;
    letter jsonb;
begin
    select * into hook from pgworker.dead_letter_hooks where dead_letter_hooks.task = new.task;
    if not found then
        return null;
    end if;
    letter := jsonb_build_object(
        'id', new.job_id, 'task', new.task, 'queue', new.queue, 'payload', new.payload, 'org_id', new.org_id,
        'headers', new.headers, 'execution', new.execution, 'failures', new.failures, 'max_attempts', new.max_attempts,
        'outcome', new.outcome, 'error', new.error, 'cause', new.cause, 'created_at', new.created_at,
        'died_at', new.died_at);
    if pg_column_size(letter) > 8 * 1024 * 1024 - 1024 then
        letter := letter || '{"payload": null}';
    end if;
    perform pgworker.enqueue(
        hook.handler, jsonb_build_object('dead', letter), hook.queue, priority => hook.priority,
        max_attempts => hook.max_attempts, timeout => hook.timeout_ms * interval '1 millisecond',
        org_id => new.org_id, headers => new.headers);
    return null;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.enqueue_jobs(tasks text[], payloads jsonb[], queues text[], priorities smallint[], run_ats timestamp with time zone[], max_attempts smallint[], timeouts_ms bigint[], org_ids text[], headers jsonb[], ids uuid[])
 RETURNS uuid[]
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
end $function$;

CREATE OR REPLACE FUNCTION pgworker.enqueue_many(task text, payloads jsonb[], queue text DEFAULT 'default'::text, priority integer DEFAULT 5, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT 25, timeout interval DEFAULT '00:30:00'::interval, org_id text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb)
 RETURNS uuid[]
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
end $function$;

CREATE OR REPLACE FUNCTION pgworker.expired_partitions(until date)
 RETURNS TABLE(parent text, child text, kind text, day date)
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    select found.* from (
        select parent.relname::text, child.relname::text, coalesce(substring(child.relname from '_(before|default)'), 'day'),
               to_date(substring(child.relname from '_([0-9]{8})$'), 'YYYYMMDD')
        from pg_inherits
        join pg_class child on child.oid = inhrelid
        join pg_class parent on parent.oid = inhparent
        where parent.oid in ('pgworker.jobs'::regclass, 'pgworker.job_executions'::regclass)
          and child.relname ~ ('^' || parent.relname || '_(default|(before_)?[0-9]{8})$')
    ) as found(parent, child, kind, day)
    where day is null or day < until
$function$;

CREATE OR REPLACE FUNCTION pgworker.expired_until(older_than interval)
 RETURNS date
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
    if older_than is null or older_than < interval '1 day' then
        raise exception 'jobs are kept for at least 1 day, not %', coalesce(older_than::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    return ((clock_timestamp() - older_than) at time zone 'UTC')::date;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.is_recorded(job_id uuid, execution integer)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
    return exists (select from pgworker.job_executions e
                   where e.job_id = is_recorded.job_id and e.execution = is_recorded.execution);
end $function$;

CREATE OR REPLACE FUNCTION pgworker.is_suspect(job_id uuid, execution integer)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE
AS $function$
begin
    return coalesce((select e.outcome = 'crashed' or (e.outcome = 'lost' and e.error ->> 'type' = 'pgworker.suspect')
                     from pgworker.job_executions e
                     where e.job_id = is_suspect.job_id and e.execution < is_suspect.execution
                     order by e.execution desc limit 1), false);
end
$function$;

CREATE OR REPLACE FUNCTION pgworker.job_status(id uuid)
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
$function$;

CREATE OR REPLACE FUNCTION pgworker.jobs_to_keep(beyond uuid)
 RETURNS TABLE(id uuid)
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    select job_id from pgworker.job_queue where job_id < beyond
    union
    select held.job_id from pgworker.job_leases, unnest(job_ids) as held(job_id) where held.job_id < beyond
    union
    select job_id from pgworker.job_executions where job_id < beyond and finished_at > clock_timestamp() - interval '1 day'
$function$;

CREATE OR REPLACE FUNCTION pgworker.last_execution(job_id uuid, execution integer, OUT ended_at timestamp with time zone, OUT suspicions integer)
 RETURNS record
 LANGUAGE plpgsql
 STABLE
AS $function$
declare
    earlier record;
    least_suspicions integer := 0;
begin
    suspicions := 0;
    for earlier in
        select e.finished_at, e.outcome = 'crashed' as was_charged,
               coalesce(e.outcome = 'lost' and e.error ->> 'type' = 'pgworker.suspect', false) as was_spared
        from pgworker.job_executions e
        where e.job_id = last_execution.job_id and e.execution < last_execution.execution
        order by e.execution desc
    loop
        ended_at := coalesce(ended_at, earlier.finished_at);
        exit when not earlier.was_charged and not earlier.was_spared;
        suspicions := suspicions + earlier.was_spared::integer;
        least_suspicions := 1;
    end loop;
    suspicions := greatest(suspicions, least_suspicions);
end
$function$;

CREATE OR REPLACE FUNCTION pgworker.list_expired_partitions(older_than interval)
 RETURNS TABLE(name text, day date, jobs bigint, executions bigint, kept bigint, bytes bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
declare
    until date := pgworker.expired_until(older_than);
    beyond uuid := pgworker.uuid7_first(until::timestamptz);
    keep uuid[];
    found record;
    beside text;
begin
    if not exists (select from pgworker.expired_partitions(until) where kind <> 'default')
       and not exists (select from pgworker.jobs_default where id < beyond) then
        return;
    end if;
    keep := array(select id from pgworker.jobs_to_keep(beyond));
    for found in
        select child, kind, expired.day from pgworker.expired_partitions(until) as expired
        where parent = 'jobs' order by expired.day nulls last
    loop
        beside := 'job_executions' || substr(found.child, 5);
        name := found.child;
        day := case when found.kind = 'day' then found.day end;
        jobs := pgworker.count_rows(found.child, 'id', beyond);
        executions := pgworker.count_rows(beside, 'job_id', beyond);
        continue when found.kind = 'default' and jobs = 0 and executions = 0;
        execute format('select count(*) from unnest($1) as keep(id) join pgworker.%I as job using (id)', found.child)
            into kept using keep;
        bytes := case when found.kind = 'default' then 0
                      else pg_total_relation_size(format('pgworker.%I', found.child)::regclass)
                           + pg_total_relation_size(format('pgworker.%I', beside)::regclass) end;
        return next;
    end loop;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.lock_for_ddl(executions text, jobs text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '50ms'
AS $function$
declare
    asked_at timestamptz := clock_timestamp();
begin
    execute format('lock table only pgworker.%I in access exclusive mode', executions);
    perform set_config('lock_timeout',
                       greatest(1, 50 - ceil(extract(epoch from clock_timestamp() - asked_at) * 1000))::text, true);
    execute format('lock table only pgworker.%I in access exclusive mode', jobs);
end $function$;

CREATE OR REPLACE FUNCTION pgworker.lock_keeping()
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
    if not pg_try_advisory_xact_lock(1885828976, 0) then
        raise exception 'somebody else makes or drops partitions at this moment' using errcode = 'lock_not_available';
    end if;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.note_partition_write()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
    if tg_argv[0] = 'jobs' then
        insert into pgworker.partition_writes values (new.id);
    else
        insert into pgworker.partition_writes values (new.job_id);
    end if;
    return null;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.protect_table(target regclass, org_column name DEFAULT 'org_id'::name)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
    org pg_attribute;
    value text := 'pgworker.current_org()';
    condition text;
    part regclass;
    named text;
begin
    if not exists (select from pg_class where oid = target and relkind in ('r', 'p')) then
        raise exception '% is not a table. Protect the tables under it.', target using errcode = 'wrong_object_type';
    end if;
    if exists (select from pg_class where oid = target and relnamespace = 'pgworker'::regnamespace) then
        raise exception '% is a table of pgworker itself, which grants protect: see pgworker migrate --roles.', target
            using errcode = 'wrong_object_type';
    end if;
    select inhparent::regclass into named from pg_inherits where inhrelid = target;
    if named is not null then
        raise exception '% is a part of %. Protect that one: its parts are protected with it.', target, named
            using errcode = 'wrong_object_type';
    end if;
    select * into org from pg_attribute where attrelid = target and attname = org_column and attnum > 0 and not attisdropped;
    if org.attname is null then
        raise exception '% has no column %. Add it (alter table % add column % text not null), or name another one.',
            target, quote_ident(org_column), target, quote_ident(org_column) using errcode = 'undefined_column';
    end if;
    if org.atttypid not in ('text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'integer'::regtype, 'bigint'::regtype) then
        raise exception 'the column % of % is of type %. It must be text, varchar, uuid, integer or bigint.',
            quote_ident(org_column), target, org.atttypid::regtype using errcode = 'datatype_mismatch';
    end if;
    if org.atttypid not in ('text'::regtype, 'varchar'::regtype) then
        value := format('%s::%s', value, org.atttypid::regtype);
    end if;
    condition := format('%I = %s', org_column, value);

    for part in
        with recursive tree(oid) as (
            select target::oid union all select inhrelid from pg_inherits join tree on inhparent = tree.oid
        ) select oid::regclass from tree
    loop
        execute format('alter table %s enable row level security, force row level security', part);
        for named in
            select polname from pg_policy where polrelid = part and polname in ('pgworker_org', 'pgworker_org_rows')
        loop
            execute format('drop policy %I on %s', named, part);
        end loop;
        execute format('create policy pgworker_org on %s as restrictive using (%s) with check (%s)', part, condition, condition);
        if not exists (select from pg_policy where polrelid = part and polpermissive) then
            execute format('create policy pgworker_org_rows on %s using (%s) with check (%s)', part, condition, condition);
        end if;
        -- TRUNCATE asks no policy. The owner keeps it, as he keeps ALTER TABLE.
        for named in
            select distinct case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end
            from pg_class cross join aclexplode(relacl) as acl
            where pg_class.oid = part and acl.privilege_type = 'TRUNCATE' and acl.grantee <> relowner
        loop
            execute format('revoke truncate on %s from %s cascade', part, named);
        end loop;
    end loop;
    if not org.atthasdef and org.attidentity = '' then
        execute format('alter table %s alter column %I set default %s', target, org_column, value);
    end if;

    for named in
        select indexrelid::regclass from pg_index where indrelid = target and indisunique and indkey[0] <> org.attnum
    loop
        raise warning 'the unique key % of % does not begin with %: a violation tells one org what another one has.',
            named, target, quote_ident(org_column)
            using hint = format('Make it unique over (%I, …) instead.', org_column);
    end loop;
    if not exists (select from pg_index where indrelid = target and indisvalid and indpred is null and indkey[0] = org.attnum) then
        raise notice 'no index of % begins with %: each query reads the rows of all orgs.', target, quote_ident(org_column)
            using hint = format('create index on %s (%I, …)', target, org_column);
    end if;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.schema_version()
 RETURNS integer
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
RETURN (SELECT max(schema_migrations.version) AS max FROM pgworker.schema_migrations);

CREATE OR REPLACE FUNCTION pgworker.somebody_sleeps(queue text)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
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
end $function$;

CREATE OR REPLACE FUNCTION pgworker.stored_job(job_id uuid)
 RETURNS SETOF pgworker.jobs
 LANGUAGE plpgsql
 STABLE ROWS 1
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
begin
    return query select * from pgworker.jobs where jobs.id = stored_job.job_id;
end $function$;

CREATE OR REPLACE FUNCTION pgworker.swap_expired_partitions(until date, beyond uuid, kept_jobs text, kept_executions text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
declare
    found record;
begin
    perform pgworker.lock_for_ddl('job_executions', 'jobs');
    execute format('insert into pgworker.%I select job.* from (select distinct job_id from pgworker.partition_writes where job_id < $1) as noted '
                   'cross join lateral (select * from pgworker.jobs where jobs.id = noted.job_id offset 0) as job '
                   'on conflict do nothing', kept_jobs)
        using beyond;
    execute format('insert into pgworker.%I select e.* from (select distinct job_id from pgworker.partition_writes where job_id < $1) as noted '
                   'join pgworker.%I as keep on keep.id = noted.job_id cross join lateral '
                   '(select * from pgworker.job_executions where job_id = keep.id offset 0) as e on conflict do nothing',
                   kept_executions, kept_jobs)
        using beyond;
    delete from pgworker.partition_writes;
    for found in select * from pgworker.expired_partitions(until) loop
        if found.kind = 'default' then
            execute format('drop trigger note_write on pgworker.%I', found.child);
        else
            execute format('alter table pgworker.%I detach partition pgworker.%I', found.parent, found.child);
            execute format('drop table pgworker.%I', found.child);
        end if;
    end loop;
    delete from pgworker.jobs_default where id < beyond;
    delete from pgworker.job_executions_default where job_id < beyond;
    execute format('alter table pgworker.jobs attach partition pgworker.%I for values from (minvalue) to (%L)',
                   kept_jobs, beyond);
    execute format('alter table pgworker.job_executions attach partition pgworker.%I for values from (minvalue) to (%L)',
                   kept_executions, beyond);
end $function$;

CREATE OR REPLACE FUNCTION pgworker.uuid7(at timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 PARALLEL SAFE STRICT
RETURN (encode((int8send(pgworker.uuid7_time_half(at)) || SUBSTRING(uuid_send(gen_random_uuid()) FROM 9)), 'hex'::text))::uuid;

CREATE OR REPLACE FUNCTION pgworker.uuid7_at(id uuid)
 RETURNS timestamp with time zone
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN to_timestamp((((((('x'::text || "left"(replace((id)::text, '-'::text, ''::text), 12)))::bit(48))::bigint)::numeric / 1000.0))::double precision);

CREATE OR REPLACE FUNCTION pgworker.uuid7_first(at timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
RETURN (encode((int8send((((date_part('epoch'::text, at) * (1000)::double precision))::bigint << 16)) || int8send((0)::bigint)), 'hex'::text))::uuid;

CREATE OR REPLACE FUNCTION pgworker.uuid7_time_half(at timestamp with time zone)
 RETURNS bigint
 LANGUAGE sql
 STABLE PARALLEL SAFE STRICT
RETURN ((((((date_part('epoch'::text, at) * (1000000)::double precision))::bigint / 1000) << 16) | (28672)::bigint) | (((((date_part('epoch'::text, at) * (1000000)::double precision))::bigint % (1000)::bigint) * 4096) / 1000));

CREATE OR REPLACE FUNCTION pgworker.watch_expired_partitions(older_than interval)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '50ms'
 SET "TimeZone" TO 'UTC'
AS $function$
declare
    until date := pgworker.expired_until(older_than);
    found record;
begin
    perform pgworker.lock_keeping();
    perform pgworker.lock_for_ddl('job_executions', 'jobs');
    for found in select * from pgworker.expired_partitions(until) loop
        execute format('create or replace trigger note_write after insert on pgworker.%I '
                       'for each row execute function pgworker.note_partition_write(%L)', found.child, found.parent);
    end loop;
end $function$;


-- triggers and policies

CREATE TRIGGER enqueue_hook AFTER INSERT ON pgworker.dead_letter_jobs FOR EACH ROW EXECUTE FUNCTION pgworker.enqueue_dead_letter_hook();


-- comments

comment on column pgworker.job_executions.cause is 'why an execution ended that could not say so itself';

comment on column pgworker.job_executions.failures is 'failures charged to the job, this execution included';

comment on column pgworker.job_leases.job_ids is 'in run order; executions and failures stand at the same positions';

comment on column pgworker.job_leases.lease_id is 'the fencing token: random, made by the worker before it asks';

comment on column pgworker.job_progress.execution is 'the execution that said so';

comment on column pgworker.job_queue.execution is 'the number that the next execution gets';

comment on column pgworker.job_queue.failures is 'failures charged so far';

comment on column pgworker.served_tasks.backoffs is 'base and cap in seconds, and jitter, of those tasks that don''t have the usual ones';

comment on column pgworker.worker_heartbeats.cpu_seconds is 'CPU time it has used, as of the same look';

comment on column pgworker.worker_heartbeats.jobs_done is 'executions that this process has ended, however they ended';

comment on column pgworker.worker_heartbeats.number is 'its own in its pool, from 0: never seen twice at a time';

comment on column pgworker.worker_heartbeats.pid_space is 'where pid means something: the boot of the kernel and, after a colon, the PID namespace';

comment on column pgworker.worker_heartbeats.runs is 'what ran at beat_at, the longest first, at most 100: [{"lease": uuid, "position": 1, "age_us": 1000}]';

comment on column pgworker.worker_heartbeats.state is 'null: its monitor has not said, or is of an earlier release';

comment on column pgworker.worker_heartbeats.tasks_digest is 'names the list in served_tasks; null: not known yet';

comment on column pgworker.worker_heartbeats.uss_bytes is 'memory that it shares with no other process, looked at every 15 s';

comment on column pgworker.worker_heartbeats.worker_id is 'one process incarnation: never a host name and a pid, which come back';

comment on function pgworker.current_org() is 'the org that this transaction works for; null: none, which sees nothing';

comment on function pgworker.enqueue(text,jsonb,text,integer,timestamp with time zone,integer,interval,text,jsonb,uuid) is 'Enqueue one job in this transaction; timeout => null means none. For psql, triggers and other languages, too.';

comment on function pgworker.enqueue_many(text,jsonb[],text,integer,timestamp with time zone,integer,interval,text,jsonb) is 'Enqueue jobs of one task in this transaction, one for each payload; their ids, in order. Options as of pgworker.enqueue.';

comment on function pgworker.is_suspect(uuid,integer) is 'whether the worker of the last execution before this one died, of that job or perhaps of it';

comment on function pgworker.job_status(uuid) is 'the status of one job; null: no such job';

comment on function pgworker.last_execution(uuid,integer) is 'when the execution before this one ended, and how many before this one, without a gap, ended with their worker, perhaps of that job; 1 at least if it was charged for one';

comment on function pgworker.protect_table(regclass,name) is 'FORCE ROW LEVEL SECURITY on a table of one''s own: a transaction sees and writes the rows of pgworker.current_org() only';

comment on function pgworker.uuid7_first(timestamp with time zone) is 'the lower bound of the ids of this time: the border of a partition';

comment on table pgworker.dead_letter_hooks is 'what is enqueued when a job of a task is given up; its domains are those of pgworker.jobs, so that it never fails there';

comment on table pgworker.partition_writes is 'jobs of expired days that something was written of while their days were being dropped';

comment on table pgworker.served_tasks is 'lists of tasks, each as some worker announced it when it connected';

comment on type pgworker.execution_outcome is 'failed, timed_out and crashed are charged against max_attempts; lost, released and snoozed are not';


-- rights of others than the owner

grant execute on function pgworker.current_org() to public;

grant execute on function pgworker.protect_table(regclass,name) to public;
