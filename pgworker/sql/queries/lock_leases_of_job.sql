-- The first half of asking a running job to stop: whatever settles, releases or reclaims it comes first, and the second
-- half sees what it did. There are two when a retry runs while others of its first batch still do; locked in the order
-- in which a trip settles leases, so that the two can't deadlock.
select lease_id from pgworker.job_leases where %(job_id)s::uuid = any (job_ids) order by lease_id for update
