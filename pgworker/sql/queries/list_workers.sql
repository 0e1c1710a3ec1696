-- The workers that have not said goodbye, with what each runs: of a lease that has ended meanwhile nothing is shown.
-- After a day without a beat a worker is a matter of the past.
select w.worker_id, w.pool_id, w.host, w.number::integer, w.pid, w.state, w.queues, w.started_at,
       extract(epoch from clock_timestamp() - w.beat_at)::float8, w.jobs_done, w.uss_bytes, w.cpu_seconds,
       coalesce(runs.job_ids, '{}'), coalesce(runs.tasks, '{}'), coalesce(runs.queues, '{}'),
       coalesce(runs.executions, '{}'), coalesce(runs.seconds, '{}')
from (select * from pgworker.worker_heartbeats
      where ended_at is null and beat_at > clock_timestamp() - interval '1 day'
      order by host, pool_id, number, started_at limit %(limit)s) w
left join lateral (
    select array_agg(job.id order by run.nth) as job_ids, array_agg(job.task::text order by run.nth) as tasks,
           array_agg(job.queue::text order by run.nth) as queues,
           array_agg(lease.executions[run.position] order by run.nth) as executions,
           array_agg(extract(epoch from clock_timestamp() - w.beat_at)::float8 + run.age_us / 1e6::float8
                     order by run.nth) as seconds
    from jsonb_array_elements(w.runs) with ordinality as element(value, nth)
    cross join lateral (select (value->>'lease')::uuid as lease_id, (value->>'position')::integer as position,
                               (value->>'age_us')::bigint as age_us, nth) as run
    join pgworker.job_leases lease on lease.lease_id = run.lease_id and lease.worker_id = w.worker_id
    join pgworker.jobs job on job.id = lease.job_ids[run.position]
) as runs on true
order by w.host, w.pool_id, w.number, w.started_at
