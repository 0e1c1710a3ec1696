-- The first half of a reclaim: end the lease. Whoever deletes the row has the jobs; SKIP LOCKED leaves a lease with a
-- settle under way, or a dying backend behind it, for the next beat. What was expired is asked again under the lock, and
-- whether the clock was set forward meanwhile.
delete from pgworker.job_leases
where lease_id = (
    select lease_id from pgworker.job_leases
    where lease_id = %(lease_id)s::uuid and (not %(only_expired)s::boolean or expires_at < clock_timestamp() and clock_timestamp() <= coalesce(%(until)s::timestamptz, 'infinity'))
    for update skip locked)
returning worker_id, slots, job_ids, executions, failures, cancelled
