-- Who holds a job now: its place in a lease, the worker process of that lease, and since when it runs, as of the last
-- heartbeat of that process.
select held.execution, held.failures, held.position::integer, cardinality(lease.job_ids),
       %(job_id)s::uuid = any (lease.cancelled), lease.claimed_at, lease.expires_at, lease.lease_id, lease.worker_id,
       w.host, w.pid, w.number::integer, w.beat_at, w.ended_how,
       (select w.beat_at - (run.value->>'age_us')::bigint * interval '1 microsecond'
        from jsonb_array_elements(w.runs) as run
        where (run.value->>'lease')::uuid = lease.lease_id and (run.value->>'position')::integer = held.position limit 1)
from pgworker.job_leases lease
cross join lateral unnest(lease.job_ids, lease.executions, lease.failures)
     with ordinality as held(job_id, execution, failures, position)
left join pgworker.worker_heartbeats w on w.worker_id = lease.worker_id
where %(job_id)s::uuid = any (lease.job_ids) and held.job_id = %(job_id)s::uuid
  and not exists (select from pgworker.job_executions e
                  where e.job_id = held.job_id and e.execution = held.execution)
