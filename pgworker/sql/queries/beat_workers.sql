-- One statement per beat for all workers of a pool. A worker shows the digest of its tasks as soon as it has its app.
insert into pgworker.worker_heartbeats
    (worker_id, pool_id, host, boot_id, pid, slot, queues, started_at, beat_at, tasks_digest)
select worker_id, %(pool_id)s::uuid, %(host)s::text, %(boot_id)s::text, pid, slot, %(queues)s::text[],
       clock_timestamp() - age_us * interval '1 microsecond', clock_timestamp(), tasks_digest
from unnest(%(worker_ids)s::uuid[], %(pids)s::integer[], %(slots)s::smallint[], %(ages_us)s::bigint[],
            %(tasks_digests)s::bigint[]) as worker(worker_id, pid, slot, age_us, tasks_digest)
on conflict (worker_id) do update set beat_at = excluded.beat_at, tasks_digest = excluded.tasks_digest
where worker_heartbeats.ended_at is null
