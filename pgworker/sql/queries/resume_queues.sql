-- Claims go on, and every sleeping worker that serves one of these queues is woken: a pool wakes as many as the payload
-- says that there are jobs. Returns those that were paused.
with asked as materialized (
    select name from pgworker.queues where name = any (%(names)s::text[]) and paused order by name for update
), resumed as (
    update pgworker.queues set paused = false, updated_at = clock_timestamp() from asked where queues.name = asked.name
    returning queues.name
)
select name, pg_notify('pgworker', name || '=1000000') from resumed
