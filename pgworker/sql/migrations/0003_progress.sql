-- What running jobs say of themselves: how far they are, and a checkpoint that their next execution begins from. One row
-- per job that says so, updated in place about once a second, deleted when the job has ended for good. Its
-- own table, so that it weighs nothing on jobs that say nothing.

create table pgworker.job_progress (
    job_id     uuid not null primary key,
    execution  integer not null,
    fraction   real not null check (fraction between 0 and 1),
    message    text not null check (length(message) <= 1000),
    checkpoint jsonb check (pg_column_size(checkpoint) <= 512 * 1024),
    updated_at timestamptz not null
) with (
    fillfactor = 50, vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0
);
comment on column pgworker.job_progress.execution is 'the execution that said so';

revoke all on pgworker.job_progress from public;
