-- Run dead letters again: failures start from 0, execution numbers go on. The job's own row comes back if its partition
-- was dropped meanwhile.
with risen as (
    delete from pgworker.dead_letter_jobs where job_id = any (%(job_ids)s::uuid[]) returning *
), job as (
    insert into pgworker.jobs (id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id,
                               unique_key, concurrency_key, headers)
    select job_id, created_at, run_at, timeout_ms, priority, max_attempts, queue, task, payload, org_id,
           unique_key, concurrency_key, headers from risen
    on conflict (id) do nothing
)
insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
select job_id, clock_timestamp(), execution + 1, priority, 0, queue, task, org_id from risen
returning job_id
