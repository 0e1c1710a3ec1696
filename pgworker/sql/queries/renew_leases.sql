-- Extend leases of workers that are alive; what is not returned is lost. SKIP LOCKED: one settle, release or cancel that
-- hangs must not hold up all others; such a lease is returned as busy, neither renewed nor lost.
-- Cancel marks travel back as positions.
with held as materialized (
    select lease_id from pgworker.job_leases where lease_id = any (%(lease_ids)s::uuid[]) for no key update skip locked
), renewed as (
    update pgworker.job_leases set expires_at = clock_timestamp() + %(ttl)s::float8 * interval '1 second'
    from held where job_leases.lease_id = held.lease_id
    returning job_leases.lease_id,
              array(select array_position(job_leases.job_ids, job_id) from unnest(job_leases.cancelled) as job_id) as cancelled
)
select lease_id, cancelled, false as is_busy from renewed
union all
select lease_id, '{}', true from pgworker.job_leases
where lease_id = any (%(lease_ids)s::uuid[]) and lease_id not in (select lease_id from held)
