-- The tasks that a worker serves, under their digest; said anew at each connect, so that no list in use grows old. Their
-- backoffs may be newer than the list.
insert into pgworker.served_tasks (digest, tasks, backoffs)
values (%(digest)s::bigint, %(tasks)s::text[], %(backoffs)s::jsonb)
on conflict (digest) do update set backoffs = excluded.backoffs, announced_at = clock_timestamp()
