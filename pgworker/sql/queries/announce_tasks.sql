-- The tasks that a worker serves, under their digest; said anew at each connect, so that no list in use grows old.
insert into pgworker.served_tasks (digest, tasks) values (%(digest)s::bigint, %(tasks)s::text[])
on conflict (digest) do update set announced_at = clock_timestamp()
