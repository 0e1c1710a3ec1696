-- Due jobs that the claim floor has passed: late commits, rolled-back claims, jobs given back. One per lane, the first.
with lane as materialized (
    select lane.queue, lane.priority,
           timestamptz 'epoch' + lane.from_us * interval '1 microsecond' as from_at,
           timestamptz 'epoch' + lane.floor_us * interval '1 microsecond' as floor_at,
           (lpad(to_hex(lane.floor_id), 16, '0') || repeat('0', 16))::uuid as floor_id
    from unnest(%(lane_queues)s::text[], %(lane_priorities)s::smallint[], %(from_us)s::bigint[], %(floor_us)s::bigint[],
                %(floor_ids)s::bigint[]) as lane(queue, priority, from_us, floor_us, floor_id)
)
select lane.queue, lane.priority, found.run_at, found.job_id
from lane cross join lateral (
    select q.run_at, q.job_id from pgworker.job_queue q
    where q.queue = lane.queue and q.priority = lane.priority and q.run_at >= lane.from_at
      and (q.run_at, q.job_id) < (lane.floor_at, lane.floor_id)
      and q.task = any (%(tasks)s::text[])
    order by q.run_at, q.job_id
    limit 1) as found
