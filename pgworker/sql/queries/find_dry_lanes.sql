-- Lanes with nothing for us between their floor and a little ago: waiting jobs of tasks that nobody serves, or nothing.
-- Their floors may rise to that time, so that no claim steps over those jobs again. A paused queue is never dry.
with lane as materialized (
    select lane.queue, lane.priority,
           timestamptz 'epoch' + lane.floor_us * interval '1 microsecond' as floor_at,
           (lpad(to_hex(lane.floor_id), 16, '0') || repeat('0', 16))::uuid as floor_id
    from unnest(%(lane_queues)s::text[], %(lane_priorities)s::smallint[], %(floor_us)s::bigint[], %(floor_ids)s::bigint[])
         as lane(queue, priority, floor_us, floor_id)
    where not exists (select from pgworker.queues where queues.name = lane.queue and queues.paused)
), a_little_ago as materialized (
    select statement_timestamp() - %(margin)s::float8 * interval '1 second' as at
)
select lane.queue, lane.priority, a_little_ago.at
from a_little_ago, lane
left join lateral (
    select q.job_id from pgworker.job_queue q
    where q.queue = lane.queue and q.priority = lane.priority
      and q.run_at <= (select at from a_little_ago)
      and (q.run_at, q.job_id) >= (lane.floor_at, lane.floor_id)
      and q.task = any (%(tasks)s::text[])
    order by q.run_at, q.job_id
    limit 1) as found on true
where found.job_id is null and a_little_ago.at > lane.floor_at
