-- Whether the hooks of the tasks that a worker serves are there as its code has them, and no others of these tasks.
with asked as (
    select * from unnest(%(tasks)s::text[], %(handlers)s::text[], %(queues)s::text[], %(priorities)s::smallint[],
                         %(max_attempts)s::smallint[], %(timeouts_ms)s::bigint[])
                  as asked(task, handler, queue, priority, max_attempts, timeout_ms)
), declared as (
    select task, handler, queue, priority, max_attempts, timeout_ms from pgworker.dead_letter_hooks
    where task = any (%(served)s::text[]) or task = any (%(tasks)s::text[])
)
select not exists (select from (table asked except table declared) as missing)
       and not exists (select from (table declared except table asked) as stale)
