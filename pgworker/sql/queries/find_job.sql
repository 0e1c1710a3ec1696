-- One job, its status, and where it waits. A dead letter outlasts its row in jobs, so its copy stands in.
with job as (
    select id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id, headers
    from pgworker.jobs where id = %(job_id)s::uuid
    union all
    select job_id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id, headers
    from pgworker.dead_letter_jobs
    where job_id = %(job_id)s::uuid and not exists (select from pgworker.jobs where id = %(job_id)s::uuid)
)
select job.id, pgworker.job_status(job.id), job.queue, job.task, job.org_id, job.priority, job.max_attempts,
       coalesce(q.failures, d.failures, last.failures, 0), job.timeout_ms / 1000.0::float8, job.created_at,
       least(coalesce(q.run_at, job.run_at), timestamptz '9999-12-30 00:00+00'), job.payload::text, job.headers::text,
       clock_timestamp()
from job
left join pgworker.job_queue q on q.job_id = job.id
left join pgworker.dead_letter_jobs d on d.job_id = job.id
left join lateral (select e.failures from pgworker.job_executions e where e.job_id = job.id
                   order by e.execution desc limit 1) as last on true
