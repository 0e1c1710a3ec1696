-- The hooks of the tasks that a worker serves, as its code has them: stale ones go, what is there already is not written.
with stale as (
    delete from pgworker.dead_letter_hooks where task = any (%(served)s::text[]) and task <> all (%(tasks)s::text[])
)
insert into pgworker.dead_letter_hooks as hook (task, handler, queue, priority, max_attempts, timeout_ms)
select * from unnest(%(tasks)s::text[], %(handlers)s::text[], %(queues)s::text[], %(priorities)s::smallint[],
                     %(max_attempts)s::smallint[], %(timeouts_ms)s::bigint[])
              as asked(task, handler, queue, priority, max_attempts, timeout_ms)
on conflict (task) do update
set handler = excluded.handler, queue = excluded.queue, priority = excluded.priority,
    max_attempts = excluded.max_attempts, timeout_ms = excluded.timeout_ms
where (hook.handler, hook.queue, hook.priority, hook.max_attempts, hook.timeout_ms)
      is distinct from (excluded.handler, excluded.queue, excluded.priority, excluded.max_attempts, excluded.timeout_ms)
