-- Take up to `jobs` due jobs into one new lease, lane by lane: queues in strict order, priorities from 9 down.
-- Each lane starts at its floor, beyond the dead index entries of what was claimed before.
-- LATERAL locks exactly the rows that it returns. The scalar subselect around clock_timestamp() makes it an index
-- condition; OFFSET 0 keeps the look-up of jobs a nested loop whatever the statistics say. Only a job that has run before
-- has earlier executions (a subselect asks: with a join, each job would pass through a cache), or can have a checkpoint;
-- JSON null: it has said how far it was, and left none. Then how long the job had been due when this transaction began:
-- now() is that moment, which the caller knows by its own clock as well. While it ran it was not due, though it has kept
-- its place. At last how often in a row its worker has died.
-- commit: a value of synchronous_commit for this transaction; null: as it is. Set here, as a statement more costs the
-- client some 40 us.
with lane as materialized (
    select lane.queue, lane.priority, lane.place,
           timestamptz 'epoch' + lane.floor_us * interval '1 microsecond' as floor_at,
           (lpad(to_hex(lane.floor_id), 16, '0') || repeat('0', 16))::uuid as floor_id
    from unnest(%(lane_queues)s::text[], %(lane_priorities)s::smallint[], %(floor_us)s::bigint[], %(floor_ids)s::bigint[])
         with ordinality as lane(queue, priority, floor_us, floor_id, place)
    where not exists (select from pgworker.queues where queues.name = lane.queue and queues.paused)
    order by lane.place
), due as (
    delete from pgworker.job_queue
    where ctid = any (array(
        select waiting.ctid
        from lane cross join lateral (
            select q.ctid from pgworker.job_queue q
            where q.queue = lane.queue and q.priority = lane.priority
              and q.run_at <= (select clock_timestamp())
              and (q.run_at, q.job_id) >= (lane.floor_at, lane.floor_id)
              and q.task = any (%(tasks)s::text[])
            order by q.run_at, q.job_id
            limit %(jobs)s
            for update of q skip locked) as waiting
        limit %(jobs)s))
    returning job_id, run_at, execution, priority, failures, queue, task, org_id
), claimed as materialized (
    select due.*, array_position(%(lane_queues)s::text[], due.queue) as place,
           case when due.execution > 1 then (select array[date_part('epoch', last.ended_at), last.suspicions]
                                             from pgworker.last_execution(due.job_id, due.execution) as last) end as last
    from due
    order by place, due.priority desc, due.run_at, due.job_id
), lease as (
    insert into pgworker.job_leases (lease_id, worker_id, claimed_at, expires_at, slots, job_ids, executions, failures)
    select %(lease_id)s::uuid, %(worker_id)s::uuid, clock_timestamp(),
           clock_timestamp() + %(ttl)s::float8 * interval '1 second', %(slots)s::smallint,
           array_agg(job_id order by place, priority desc, run_at, job_id),
           array_agg(execution order by place, priority desc, run_at, job_id),
           array_agg(failures order by place, priority desc, run_at, job_id)
    from claimed
    having count(*) > 0
       and set_config('synchronous_commit', coalesce(%(commit)s::text, current_setting('synchronous_commit')), true) > ''
)
select claimed.job_id, claimed.task, job.payload::text, claimed.execution, claimed.failures, claimed.run_at,
       claimed.queue, claimed.priority, claimed.org_id, job.max_attempts, job.timeout_ms, job.headers::text, job.created_at,
       case when claimed.execution > 1
            then (select coalesce(p.checkpoint, 'null')::text from pgworker.job_progress p where p.job_id = claimed.job_id) end,
       date_part('epoch', now() - greatest(claimed.run_at, job.created_at, to_timestamp(claimed.last[1]))),
       coalesce(claimed.last[2], 0)::integer
from claimed
left join lateral (select * from pgworker.jobs where jobs.id = claimed.job_id offset 0) as job on true
order by claimed.place, claimed.priority desc, claimed.run_at, claimed.job_id
