-- Extend leases of workers that are alive; what is not returned is lost. Locked in the order of their ids, as settles
-- are sent, so that the two can't deadlock. Cancel marks travel back with it, as positions.
with held as materialized (
    select lease_id from pgworker.job_leases where lease_id = any (%(lease_ids)s::uuid[])
    order by lease_id for no key update
)
update pgworker.job_leases set expires_at = clock_timestamp() + %(ttl)s::float8 * interval '1 second'
from held where job_leases.lease_id = held.lease_id
returning job_leases.lease_id,
          array(select array_position(job_leases.job_ids, job_id) from unnest(job_leases.cancelled) as job_id) as cancelled
