-- Who may do what in the schema, besides its owner. Every table, view, type and function is named here; a test compares.
-- Run as pgworker_owner by `pgworker migrate --roles`, and with every later migration.

revoke all on all tables in schema pgworker from public, pgworker_enqueuer, pgworker_worker, pgworker_admin;
revoke all on all routines in schema pgworker from public, pgworker_enqueuer, pgworker_worker, pgworker_admin;
revoke all on schema pgworker from public;
grant usage on schema pgworker to pgworker_enqueuer, pgworker_worker, pgworker_admin;

-- Anybody: these act with the rights of who calls them.
grant execute on function pgworker.current_org, pgworker.protect_table to public;

-- Whoever enqueues: handlers and operators do so too.
grant execute on function pgworker.enqueue, pgworker.enqueue_jobs, pgworker.enqueue_many, pgworker.schema_version
    to pgworker_enqueuer, pgworker_worker, pgworker_admin;

-- Who cancels by age: the border of a time among the ids.
grant execute on function pgworker.uuid7_first to pgworker_worker, pgworker_admin;

-- A pool: claim, settle, renew, release, reclaim, beat, say what it serves, and make partitions. UPDATE on job_queue is
-- for FOR UPDATE.
grant select on pgworker.jobs, pgworker.queues to pgworker_worker;
grant select, insert, update, delete on pgworker.job_queue, pgworker.job_leases, pgworker.worker_heartbeats to pgworker_worker;
grant select, insert on pgworker.job_executions, pgworker.dead_letter_jobs to pgworker_worker;
grant select, insert, update, delete on pgworker.job_progress, pgworker.dead_letter_hooks, pgworker.served_tasks
    to pgworker_worker;
grant execute on function pgworker.create_partition, pgworker.count_default_jobs, pgworker.list_expired_partitions,
    pgworker.watch_expired_partitions, pgworker.drop_expired_partitions, pgworker.job_status(uuid),
    pgworker.somebody_sleeps, pgworker.is_suspect, pgworker.last_execution, pgworker.stored_job, pgworker.is_recorded
    to pgworker_worker;

-- An operator: see everything, cancel, requeue, discard, pause, purge, prune. Jobs and dead letters are copied, never edited.
grant select on pgworker.job_status, pgworker.executions, pgworker.worker_heartbeats, pgworker.schema_migrations,
    pgworker.dead_letter_hooks, pgworker.served_tasks to pgworker_admin;
grant select, insert on pgworker.jobs, pgworker.job_executions to pgworker_admin;
grant select, insert, update, delete on pgworker.job_queue to pgworker_admin;
grant select, update on pgworker.job_leases to pgworker_admin;
grant select, delete on pgworker.dead_letter_jobs, pgworker.job_progress to pgworker_admin;
grant select, insert, update, delete on pgworker.queues to pgworker_admin;
grant execute on function pgworker.job_status(uuid), pgworker.list_expired_partitions,
    pgworker.watch_expired_partitions, pgworker.drop_expired_partitions to pgworker_admin;

-- The owner's alone: what the functions above call, and the default partitions, which are reached through their tables.
revoke all on function pgworker.expired_until, pgworker.expired_partitions, pgworker.jobs_to_keep, pgworker.count_rows,
    pgworker.lock_for_ddl, pgworker.lock_keeping, pgworker.note_partition_write, pgworker.swap_expired_partitions from public;
revoke all on function pgworker.enqueue_dead_letter_hook, pgworker.check_job_id, pgworker.uuid7, pgworker.uuid7_at,
    pgworker.uuid7_time_half from public;
revoke all on pgworker.jobs_default, pgworker.job_executions_default, pgworker.partition_writes from public;
revoke all on type pgworker.execution_outcome, pgworker.queue_name, pgworker.task_name, pgworker.priority, pgworker.attempts,
    pgworker.milliseconds, pgworker.payload, pgworker.headers, pgworker.org_id, pgworker.job_key from public;
