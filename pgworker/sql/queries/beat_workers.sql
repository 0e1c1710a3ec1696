-- One statement per beat for all workers of a pool.
insert into pgworker.worker_heartbeats (worker_id, pool_id, host, boot_id, pid, slot, queues, started_at, beat_at)
select worker_id, %(pool_id)s::uuid, %(host)s::text, %(boot_id)s::text, pid, slot, %(queues)s::text[],
       clock_timestamp() - age_us * interval '1 microsecond', clock_timestamp()
from unnest(%(worker_ids)s::uuid[], %(pids)s::integer[], %(slots)s::smallint[], %(ages_us)s::bigint[])
     as worker(worker_id, pid, slot, age_us)
on conflict (worker_id) do update set beat_at = excluded.beat_at where worker_heartbeats.ended_at is null
