-- A worker process has ended; from now on whatever lease still names it is its pool's to reclaim, and two beats later
-- anybody's: this counts as the last one, for an outage may have kept it from beating.
insert into pgworker.worker_heartbeats
    (worker_id, pool_id, host, pid_space, pid, number, queues, started_at, beat_at, ended_at, ended_how)
values (%(worker_id)s::uuid, %(pool_id)s::uuid, %(host)s::text, %(pid_space)s::text, %(pid)s, %(number)s, %(queues)s::text[],
        clock_timestamp() - %(age_us)s::bigint * interval '1 microsecond', clock_timestamp(), clock_timestamp(), %(how)s::text)
on conflict (worker_id) do update set beat_at = clock_timestamp(), ended_at = clock_timestamp(), ended_how = excluded.ended_how
