-- The tables of bare_loop.py: those of pgworker that its statements touch, without checks, roles and policies.
create schema bare;

create table bare.jobs (
    id uuid primary key,
    queue text not null,
    task text not null,
    payload jsonb not null,
    org_id text,
    priority smallint not null default 5,
    max_attempts smallint not null default 5,
    timeout_ms integer,
    run_at timestamptz,
    headers jsonb,
    created_at timestamptz not null default now()
) partition by range (id);
create table bare.jobs_today partition of bare.jobs for values from (minvalue) to (maxvalue);

create table bare.job_queue (
    job_id uuid primary key,
    queue text not null,
    priority smallint not null default 5,
    run_at timestamptz not null,
    task text not null,
    org_id text,
    execution integer not null default 1,
    failures smallint not null default 0
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
create index on bare.job_queue (queue, priority, run_at, job_id);

create table bare.job_leases (
    lease_id uuid primary key,
    worker_id integer not null,
    slots smallint,
    job_ids uuid[],
    executions integer[],
    failures smallint[],
    claimed_at timestamptz default now(),
    expires_at timestamptz not null
);

create table bare.job_executions (
    job_id uuid not null,
    execution integer not null,
    worker_id integer,
    outcome smallint not null,
    charged boolean default true,
    started_at timestamptz not null,
    finished_at timestamptz not null,
    error jsonb,
    result jsonb,
    primary key (job_id, execution)
) partition by range (job_id);
create table bare.job_executions_today partition of bare.job_executions for values from (minvalue) to (maxvalue);
