-- Mark all jobs of one locked lease that match and are not settled, and tell its monitor once. Returns how many are new.
with found as materialized (
    select array_agg(held.job_id order by held.position) as job_ids
    from pgworker.job_leases lease
    cross join lateral unnest(lease.job_ids, lease.executions) with ordinality as held(job_id, execution, position)
    cross join lateral (select queue, task, org_id from pgworker.jobs where id = held.job_id offset 0) as job
    where lease.lease_id = %(lease_id)s::uuid
      and held.job_id <> all (lease.cancelled)
      and (%(queue)s::text is null or job.queue = %(queue)s::text)
      and (%(task)s::text is null or job.task = %(task)s::text)
      and (%(org_id)s::text is null or job.org_id = %(org_id)s::text)
      and (%(older_than)s::float8 is null or held.job_id < (
          select pgworker.uuid7_first(clock_timestamp() - %(older_than)s::float8 * interval '1 second')))
      and not exists (select from pgworker.job_executions e
                      where e.job_id = held.job_id and e.execution = held.execution offset 0)
), marked as (
    update pgworker.job_leases set cancelled = job_leases.cancelled || found.job_ids
    from found where lease_id = %(lease_id)s::uuid and found.job_ids is not null
    returning lease_id, cardinality(found.job_ids) as jobs
)
select jobs, pg_notify('pgworker', '!cancel ' || lease_id) from marked
