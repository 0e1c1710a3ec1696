-- Cancel up to `limit` waiting jobs behind a place of job_queue_claim: out of job_queue, and an execution row for each that
-- says so. One that a claim is taking this moment is waited for, and not there after it. Returns how many there were and
-- the place of the last one: from there on, the entries of what was deleted before are not stepped over again.
with gone as (
    delete from pgworker.job_queue
    where ctid = any (array(
        select q.ctid from pgworker.job_queue q
        where (q.queue, q.priority, q.run_at, q.job_id)
              > (%(after_queue)s::text, %(after_priority)s::smallint, %(after_run_at)s::timestamptz, %(after_id)s::uuid)
          and (%(queue)s::text is null or q.queue = %(queue)s::text)
          and (%(task)s::text is null or q.task = %(task)s::text)
          and (%(org_id)s::text is null or q.org_id = %(org_id)s::text)
          and (%(older_than)s::float8 is null or q.job_id < (
              select pgworker.uuid7_first(clock_timestamp() - %(older_than)s::float8 * interval '1 second')))
        order by q.queue, q.priority, q.run_at, q.job_id
        limit %(limit)s
        for update))
    returning queue, priority, run_at, job_id, execution, failures
), recorded as (
    insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures, cause)
    select job_id, clock_timestamp(), execution, 'cancelled', failures, %(cause)s::text from gone
), forgotten as (
    delete from pgworker.job_progress p using gone where p.job_id = gone.job_id
)
select count(*) over (), queue, priority, run_at::text, job_id
from gone
order by queue desc, priority desc, run_at desc, job_id desc
limit 1
