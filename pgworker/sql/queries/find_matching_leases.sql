-- Leases with jobs that match, are not settled and have no mark yet. A look without locks: what is in them is asked again.
select lease.lease_id
from pgworker.job_leases lease
where exists (
    select
    from unnest(lease.job_ids, lease.executions) as held(job_id, execution)
    cross join lateral (select queue, task, org_id from pgworker.jobs where id = held.job_id offset 0) as job
    where held.job_id <> all (lease.cancelled)
      and (%(queue)s::text is null or job.queue = %(queue)s::text)
      and (%(task)s::text is null or job.task = %(task)s::text)
      and (%(org_id)s::text is null or job.org_id = %(org_id)s::text)
      and (%(older_than)s::float8 is null or held.job_id < (
          select pgworker.uuid7_first(clock_timestamp() - %(older_than)s::float8 * interval '1 second')))
      and not exists (select from pgworker.job_executions e
                      where e.job_id = held.job_id and e.execution = held.execution offset 0))
order by lease.lease_id
