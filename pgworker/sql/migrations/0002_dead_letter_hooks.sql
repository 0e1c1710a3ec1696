-- Hooks of tasks for their dead letters. A worker declares those of its app when it starts; whoever buries a job then,
-- in whatever way, enqueues the job of its hook in the same transaction.

create table pgworker.dead_letter_hooks (
    task         text not null primary key,
    handler      text not null check (handler <> task and length(handler) between 1 and 256
                                      and handler !~ '[^A-Za-z0-9_.:-]'),
    queue        text not null check (length(queue) between 1 and 128 and queue !~ '[^A-Za-z0-9_.:-]'),
    priority     smallint not null check (priority between 0 and 9),
    max_attempts smallint not null check (max_attempts > 0),
    timeout_ms   bigint check (timeout_ms > 0)
);
comment on table pgworker.dead_letter_hooks is
    'what is enqueued when a job of a task is given up; the checks are those of pgworker.jobs, so that it never fails there';

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
    perform pgworker.enqueue_many(
        tasks => array[hook.handler], payloads => array[jsonb_build_object('dead', letter)],
        queues => array[hook.queue], priorities => array[hook.priority], run_ats => array[null::timestamptz],
        max_attempts => array[hook.max_attempts], timeouts_ms => array[hook.timeout_ms], org_ids => array[new.org_id],
        headers => array[new.headers], ids => array[null::uuid]);
    return null;
end $$;

create trigger enqueue_hook after insert on pgworker.dead_letter_jobs
    for each row execute function pgworker.enqueue_dead_letter_hook();

revoke all on pgworker.dead_letter_hooks from public;
revoke all on function pgworker.enqueue_dead_letter_hook() from public;
