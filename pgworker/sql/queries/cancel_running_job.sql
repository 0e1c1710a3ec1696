-- The second half: a mark in the lease that still runs the job, and a word to its monitor.
with marked as (
    update pgworker.job_leases
    set cancelled = array_append(array_remove(cancelled, %(job_id)s::uuid), %(job_id)s::uuid)
    where lease_id = any (%(lease_ids)s::uuid[])
      and not exists (select from pgworker.job_executions e
                      where e.job_id = %(job_id)s::uuid
                        and e.execution = job_leases.executions[array_position(job_leases.job_ids, %(job_id)s::uuid)])
    returning lease_id
)
select pg_notify('pgworker', '!cancel ' || lease_id), lease_id from marked
