-- The newest jobs, of some statuses (null: of all), with ids below `before` (null: any). A status is looked up where its jobs are, so that the few failed ones
-- are found without a look at the millions that succeeded; the branches of other statuses don't run. OFFSET 0 keeps the
-- look-ups nested loops, which end at the limit: with statistics of yesterday another plan took 90 s.
with found as (
    (select id from pgworker.jobs
     where %(statuses)s::text[] is null
       and (%(before)s::uuid is null or id < %(before)s::uuid)
       and (%(queue)s::text is null or queue = %(queue)s::text)
       and (%(task)s::text is null or task = %(task)s::text)
       and (%(org_id)s::text is null or org_id = %(org_id)s::text)
     order by id desc limit %(limit)s)
    union all
    (select job_id from pgworker.job_queue
     where %(statuses)s::text[] && array['pending', 'scheduled', 'failed']
       and case when failures > 0 then 'failed' when run_at > clock_timestamp() then 'scheduled' else 'pending' end
           = any (%(statuses)s::text[])
       and (%(before)s::uuid is null or job_id < %(before)s::uuid)
       and (%(queue)s::text is null or queue = %(queue)s::text)
       and (%(task)s::text is null or task = %(task)s::text)
       and (%(org_id)s::text is null or org_id = %(org_id)s::text)
     order by job_id desc limit %(limit)s)
    union all
    (select job_id from pgworker.dead_letter_jobs
     where 'dead_letter' = any (%(statuses)s::text[])
       and (%(before)s::uuid is null or job_id < %(before)s::uuid)
       and (%(queue)s::text is null or queue = %(queue)s::text)
       and (%(task)s::text is null or task = %(task)s::text)
       and (%(org_id)s::text is null or org_id = %(org_id)s::text)
     order by job_id desc limit %(limit)s)
    union all
    (select held.job_id
     from (select held.job_id, held.execution
           from pgworker.job_leases lease, unnest(lease.job_ids, lease.executions) as held(job_id, execution)
           order by held.job_id desc) as held
     cross join lateral (select queue, task, org_id from pgworker.jobs where id = held.job_id offset 0) as job
     left join lateral (select e.execution from pgworker.job_executions e
                        where e.job_id = held.job_id and e.execution = held.execution offset 0) as settled on true
     where 'running' = any (%(statuses)s::text[])
       and settled.execution is null
       and (%(before)s::uuid is null or held.job_id < %(before)s::uuid)
       and (%(queue)s::text is null or job.queue = %(queue)s::text)
       and (%(task)s::text is null or job.task = %(task)s::text)
       and (%(org_id)s::text is null or job.org_id = %(org_id)s::text)
     order by held.job_id desc limit %(limit)s)
    union all
    (select ended.job_id
     from pgworker.job_executions ended
     cross join lateral (select queue, task, org_id from pgworker.jobs where id = ended.job_id offset 0) as job
     where %(statuses)s::text[] && array['succeeded', 'cancelled']
       and ended.outcome in ('succeeded', 'cancelled') and ended.outcome::text = any (%(statuses)s::text[])
       and (%(before)s::uuid is null or ended.job_id < %(before)s::uuid)
       and (%(queue)s::text is null or job.queue = %(queue)s::text)
       and (%(task)s::text is null or job.task = %(task)s::text)
       and (%(org_id)s::text is null or job.org_id = %(org_id)s::text)
     order by ended.job_id desc limit %(limit)s)
    union all
    (select id from pgworker.job_status
     where 'LOST' = any (%(statuses)s::text[]) and status = 'LOST'
       and (%(before)s::uuid is null or id < %(before)s::uuid)
       and (%(queue)s::text is null or queue = %(queue)s::text)
       and (%(task)s::text is null or task = %(task)s::text)
       and (%(org_id)s::text is null or org_id = %(org_id)s::text)
     order by id desc limit %(limit)s)
)
select id, status, queue, task, org_id, priority, created_at, least(run_at, timestamptz '9999-12-30 00:00+00') as run_at,
       execution, failures, max_attempts, last_outcome::text, finished_at, cause,
       extract(epoch from clock_timestamp() - created_at)::float8 as age
from pgworker.job_status
where id = any (array(select id from found))
  and (%(statuses)s::text[] is null or status = any (%(statuses)s::text[]))
order by id desc
limit %(limit)s
