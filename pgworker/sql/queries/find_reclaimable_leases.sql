-- Leases that nobody holds any more: their worker has ended, or (if `by_expiry`) their time is over.
-- By expiry only while the clock shows what it may show at most, `until`: set forward, it would end all leases at once.
-- A pool that still beats looks after its own: it knows what a worker ran, and what it only never heard of. Others leave
-- it the time for that, `patience`, also after it has recorded how a worker ended; likewise only until `others_until`, null:
-- not now.
select lease.lease_id, lease.worker_id, lease.slots, worker.ended_how, worker.ended_at is null as only_expired
from pgworker.job_leases lease
left join pgworker.worker_heartbeats worker on worker.worker_id = lease.worker_id
where (worker.ended_at is not null
       and (worker.pool_id = %(pool_id)s::uuid
            or clock_timestamp() <= %(others_until)s::timestamptz
               and worker.beat_at < clock_timestamp() - %(patience)s::float8 * interval '1 second'))
   or (%(by_expiry)s::boolean and lease.expires_at < clock_timestamp()
       and clock_timestamp() <= coalesce(%(until)s::timestamptz, 'infinity')
       and (worker.worker_id is null or worker.pool_id = %(pool_id)s::uuid
            or worker.beat_at < clock_timestamp() - %(silence)s::float8 * interval '1 second'))
