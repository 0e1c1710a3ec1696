-- Hooks that the server has forgotten, a standby maybe that lagged when it was promoted. What is there stays: newer code may have
-- declared it. In the order of their names: two that do this at once must not wait for each other.
insert into pgworker.dead_letter_hooks (task, handler, queue, priority, max_attempts, timeout_ms)
select * from unnest(%(tasks)s::text[], %(handlers)s::text[], %(queues)s::text[], %(priorities)s::smallint[],
                     %(max_attempts)s::smallint[], %(timeouts_ms)s::bigint[])
              as asked(task, handler, queue, priority, max_attempts, timeout_ms)
order by asked.task
on conflict (task) do nothing
