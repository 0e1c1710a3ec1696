-- A worker has ended that nobody of its pool could speak for; nothing if somebody has, or it has beaten since it was found.
update pgworker.worker_heartbeats
set ended_at = clock_timestamp(), ended_how = %(how)s::text
where worker_id = %(worker_id)s::uuid and ended_at is null and beat_at = %(beat_at)s::timestamptz
returning worker_id
