-- One job by its id into a new lease, however late it is due; not one of a paused queue, unless `even_paused`, nor of a task
-- that the caller does not have. SKIP LOCKED: what somebody else takes this moment is his. Columns as in claim_jobs.
-- A job that is parked (run_at is infinity) has the last day that Python can read.
with due as (
    delete from pgworker.job_queue
    where ctid = any (array(
        select q.ctid from pgworker.job_queue q
        where q.job_id = %(job_id)s::uuid
          and q.task = any (%(tasks)s::text[])
          and (%(even_paused)s::boolean
               or not exists (select from pgworker.queues where queues.name = q.queue and queues.paused))
        for update of q skip locked))
    returning job_id, run_at, execution, priority, failures, queue, task, org_id
), lease as (
    insert into pgworker.job_leases (lease_id, worker_id, claimed_at, expires_at, slots, job_ids, executions, failures)
    select %(lease_id)s::uuid, %(worker_id)s::uuid, clock_timestamp(),
           clock_timestamp() + %(ttl)s::float8 * interval '1 second', 1, array[job_id], array[execution], array[failures]
    from due
)
select due.job_id, due.task, job.payload::text, due.execution, due.failures, least(due.run_at, timestamptz '9999-12-30 UTC'),
       due.queue, due.priority, due.org_id, job.max_attempts, job.timeout_ms, job.headers::text, job.created_at,
       case when due.execution > 1
            then (select coalesce(p.checkpoint, 'null')::text from pgworker.job_progress p where p.job_id = due.job_id) end,
       extract(epoch from now() - least(greatest(due.run_at, job.created_at, last.ended_at), timestamptz '9999-12-30 UTC'))::float8, 0  -- it runs alone
from due
left join lateral (select * from pgworker.jobs where jobs.id = due.job_id offset 0) as job on true
left join lateral (select * from pgworker.last_execution(due.job_id, due.execution) where due.execution > 1 offset 0)
    as last on true
