-- Due jobs of some tasks (null: any) in these lanes, each up to a place: what is claimed before the job that stands there.
-- Looks at `cap` + 1 rows at most.
select least(count(*) filter (where %(tasks)s::text[] is null or task = any (%(tasks)s::text[])), %(cap)s::integer)::integer,
       count(*) > %(cap)s::integer
from (select seen.task
      from unnest(%(queues)s::text[], %(priorities)s::smallint[], %(until_at)s::timestamptz[], %(until_ids)s::uuid[])
           as lane(queue, priority, until_at, until_id)
      cross join lateral (
          select q.task from pgworker.job_queue q
          where q.queue = lane.queue and q.priority = lane.priority
            and q.run_at <= (select clock_timestamp())
            and (q.run_at, q.job_id) < (lane.until_at, lane.until_id)
          order by q.run_at, q.job_id
          limit %(cap)s::integer + 1) as seen
      limit %(cap)s::integer + 1) as found
