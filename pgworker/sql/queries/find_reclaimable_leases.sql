-- Leases that nobody holds any more: their worker has ended, or (if `by_expiry`) their time is over.
select lease.lease_id, lease.worker_id, lease.slots, worker.ended_how, worker.ended_at is null as only_expired
from pgworker.job_leases lease
left join pgworker.worker_heartbeats worker on worker.worker_id = lease.worker_id
where worker.ended_at is not null
   or (%(by_expiry)s::boolean and lease.expires_at < clock_timestamp())
