-- Up to `limit` jobs that match, wait for a later time and come behind `after` in the order of their ids are due now, as
-- hasten_jobs does it. Returns how many there were, and the last of them.
with found as materialized (
    select q.job_id from pgworker.job_queue q
    where q.job_id > %(after)s::uuid and q.run_at > clock_timestamp()
      and (%(retries)s::boolean and q.failures > 0 or %(scheduled)s::boolean and q.failures = 0)
      and (%(queue)s::text is null or q.queue = %(queue)s::text)
      and (%(task)s::text is null or q.task = %(task)s::text)
      and (%(org_id)s::text is null or q.org_id = %(org_id)s::text)
    order by q.job_id
    limit %(limit)s
    for update
), later as (
    delete from pgworker.job_queue q using found where q.job_id = found.job_id
    returning q.job_id, q.execution, q.priority, q.failures, q.queue, q.task, q.org_id
), due as (
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select job_id, clock_timestamp(), execution, priority, failures, queue, task, org_id from later
    returning job_id, queue
), told as materialized (
    select queue, pg_notify('pgworker', queue || '=' || count(*)) from due group by queue
)
select count(*), (array_agg(due.job_id order by due.job_id desc))[1] from due join told using (queue)
