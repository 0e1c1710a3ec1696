-- The worker processes of the last hour that have not ended, by what they serve: how many are silent, and what the others
-- do. Without a digest a worker has not said yet which tasks it has.
select seen.queues, served.tasks, seen.silent, seen.least_silence, seen.starting, seen.idle, seen.busy, seen.draining, seen.paused
from (select queues, tasks_digest,
             count(*) filter (where silence > %(silent_after)s::float8) as silent,
             min(silence) as least_silence,
             count(*) filter (where silence <= %(silent_after)s::float8 and state = 'starting') as starting,
             count(*) filter (where silence <= %(silent_after)s::float8 and state = 'idle') as idle,
             count(*) filter (where silence <= %(silent_after)s::float8 and coalesce(state, 'busy') = 'busy') as busy,
             count(*) filter (where silence <= %(silent_after)s::float8 and state = 'draining') as draining,
             count(*) filter (where silence <= %(silent_after)s::float8 and state = 'paused') as paused
      from (select w.*, extract(epoch from clock_timestamp() - beat_at)::float8 as silence
            from pgworker.worker_heartbeats w where ended_at is null) as worker
      where silence < 3600 and cardinality(queues) > 0
      group by queues, tasks_digest
      limit %(limit)s) as seen
left join pgworker.served_tasks served on served.digest = seen.tasks_digest
