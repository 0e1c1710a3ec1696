-- Workers of other pools whose pids are of our space, and which have not been heard of for so long that their pool can't
-- be about to say how they ended. The latest first: what can't be told of old ones must not hide them.
select worker_id, pid, number::integer, beat_at
from pgworker.worker_heartbeats
where ended_at is null and pool_id <> %(pool_id)s::uuid and host = %(host)s::text and pid_space = %(pid_space)s::text
  and beat_at < clock_timestamp() - %(silence)s::float8 * interval '1 second'
order by beat_at desc
limit 100
