-- Ask the holder of a running job to stop: a mark in its lease, and a word to its monitor.
-- FOR UPDATE: a settle or release under way comes first, and a job that left the lease meanwhile is not marked.
with lease as materialized (
    select lease_id from pgworker.job_leases where %(job_id)s::uuid = any (job_ids) for update
), marked as (
    update pgworker.job_leases
    set cancelled = array_append(array_remove(cancelled, %(job_id)s::uuid), %(job_id)s::uuid)
    from lease
    where job_leases.lease_id = lease.lease_id
      and not exists (select from pgworker.job_executions e
                      where e.job_id = %(job_id)s::uuid
                        and e.execution = job_leases.executions[array_position(job_leases.job_ids, %(job_id)s::uuid)])
    returning job_leases.lease_id
)
select pg_notify('pgworker', '!cancel ' || lease_id), lease_id from marked
