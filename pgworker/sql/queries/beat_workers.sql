-- One statement per beat for all workers of a pool. A worker shows the digest of its tasks as soon as it has its app.
insert into pgworker.worker_heartbeats as known
    (worker_id, pool_id, host, pid_space, pid, number, queues, started_at, beat_at, tasks_digest,
     state, runs, jobs_done, uss_bytes, cpu_seconds)
select worker_id, %(pool_id)s::uuid, %(host)s::text, %(pid_space)s::text, pid, number, %(queues)s::text[],
       clock_timestamp() - age_us * interval '1 microsecond', clock_timestamp(), tasks_digest,
       state, runs, jobs_done, uss_bytes, cpu_seconds
from unnest(%(worker_ids)s::uuid[], %(pids)s::integer[], %(numbers)s::smallint[], %(ages_us)s::bigint[],
            %(tasks_digests)s::bigint[], %(states)s::text[], %(runs)s::jsonb[], %(jobs_done)s::bigint[],
            %(uss_bytes)s::bigint[], %(cpu_seconds)s::double precision[])
     as worker(worker_id, pid, number, age_us, tasks_digest, state, runs, jobs_done, uss_bytes, cpu_seconds)
on conflict (worker_id) do update
set beat_at = excluded.beat_at, tasks_digest = excluded.tasks_digest, state = excluded.state, runs = excluded.runs,
    jobs_done = excluded.jobs_done, uss_bytes = excluded.uss_bytes, cpu_seconds = excluded.cpu_seconds
where known.ended_at is null
