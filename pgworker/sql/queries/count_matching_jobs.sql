-- How many jobs wait and how many are claimed that a filter matches; what is not asked for is 0, and not looked at.
select case when %(waiting)s::boolean then (
           select count(*) from pgworker.job_queue q
           where (%(queue)s::text is null or q.queue = %(queue)s::text)
             and (%(task)s::text is null or q.task = %(task)s::text)
             and (%(org_id)s::text is null or q.org_id = %(org_id)s::text)
             and (%(older_than)s::float8 is null or q.job_id < (
                 select pgworker.uuid7_first(clock_timestamp() - %(older_than)s::float8 * interval '1 second')))) else 0 end,
       case when %(running)s::boolean then (
           select count(*)
           from pgworker.job_leases lease
           cross join lateral unnest(lease.job_ids, lease.executions) as held(job_id, execution)
           cross join lateral (select queue, task, org_id from pgworker.jobs where id = held.job_id offset 0) as job
           where (%(queue)s::text is null or job.queue = %(queue)s::text)
             and (%(task)s::text is null or job.task = %(task)s::text)
             and (%(org_id)s::text is null or job.org_id = %(org_id)s::text)
             and (%(older_than)s::float8 is null or held.job_id < (
                 select pgworker.uuid7_first(clock_timestamp() - %(older_than)s::float8 * interval '1 second')))
             and not exists (select from pgworker.job_executions e
                             where e.job_id = held.job_id and e.execution = held.execution offset 0)) else 0 end
