-- Hooks of tasks for their dead letters. A worker declares those of its app when it starts; whoever buries a job then,
-- in whatever way, enqueues the job of its hook in the same transaction.

create table pgworker.dead_letter_hooks (
    task         text not null primary key,
    handler      pgworker.task_name not null check (handler <> task),
    queue        pgworker.queue_name not null,
    priority     pgworker.priority not null,
    max_attempts pgworker.attempts not null,
    timeout_ms   pgworker.milliseconds
);
comment on table pgworker.dead_letter_hooks is
    'what is enqueued when a job of a task is given up; its domains are those of pgworker.jobs, so that it never fails there';

-- Per row, since a trigger per statement would run at every settle. The payload of a job may be as large as one may be;
-- beside the rest of the letter it might be too large, and no hook is worth a job that can't be buried.
create function pgworker.enqueue_dead_letter_hook() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
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
end $$;

create trigger enqueue_hook after insert on pgworker.dead_letter_jobs
    for each row execute function pgworker.enqueue_dead_letter_hook();

revoke all on pgworker.dead_letter_hooks from public;
revoke all on function pgworker.enqueue_dead_letter_hook() from public;
