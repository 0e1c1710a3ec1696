-- How much waits in each queue, and how much of each is claimed, at a cost that doesn't grow with the queues: names come
-- from a loose index scan (https://wiki.postgresql.org/wiki/Loose_indexscan), and counting stops after `cap` rows a queue,
-- or fewer if so many of each were more than `total`. `jobs` and `failed` are what was seen, `is_more` says that there is more of it.
-- Who has waited longest is among the first of a lane, not always the first: what its worker died with has kept its place, but
-- was not due while it ran. Of the last of a full look that is not said: who waits behind it has not waited longer than that.
with recursive step as (
    (select queue from pgworker.job_queue order by queue limit 1)
    union all
    select (select q.queue from pgworker.job_queue q where q.queue > step.queue order by q.queue limit 1)
    from step where step.queue is not null
), held as materialized (
    select held.job_id, held.execution
    from pgworker.job_leases lease, unnest(lease.job_ids, lease.executions) as held(job_id, execution)
    limit %(cap)s::integer + 1
), claimed as materialized (
    select job.queue, count(*) as jobs
    from (select * from held limit %(cap)s::integer) as held
    cross join lateral (select queue from pgworker.jobs where jobs.id = held.job_id offset 0) as job
    left join lateral (select e.execution from pgworker.job_executions e
                       where e.job_id = held.job_id and e.execution = held.execution offset 0) as settled on true
    where settled.execution is null
    group by job.queue
), name as materialized (
    select queue from (select queue from step limit %(queues)s::integer) as waiting where queue is not null
    union
    select queue from claimed
    union
    (select name from pgworker.queues order by name limit %(queues)s::integer)
), look as materialized (
    select clock_timestamp() as now, least(%(cap)s::integer, %(total)s::integer / greatest(1, count(*))) as cap from name
)
select name.queue, coalesce(rule.paused, false), due.jobs, due.failed, due.is_more, ahead.jobs, ahead.failed, ahead.is_more,
       coalesce(claimed.jobs, 0), (select count(*) > %(cap)s::integer from held),
       extract(epoch from look.now - oldest.due_at)::float8
from name
cross join look
left join pgworker.queues rule on rule.name = name.queue
left join claimed on claimed.queue = name.queue
cross join lateral (
    select min(case when first.place = 100 then first.run_at else greatest(first.run_at, last.finished_at) end) as due_at
    from generate_series(0, 9) as lane(priority)
    cross join lateral (select q.job_id, q.execution, q.run_at, row_number() over (order by q.run_at, q.job_id) as place
                        from pgworker.job_queue q
                        where q.queue = name.queue and q.priority = lane.priority and q.run_at <= look.now
                        order by q.run_at, q.job_id limit 100) as first
    left join lateral (select e.finished_at from pgworker.job_executions e
                       where first.execution > 1 and e.job_id = first.job_id and e.execution < first.execution
                       order by e.execution desc limit 1) as last on true
) as oldest
cross join lateral (
    select least(count(*), look.cap) as jobs, count(*) filter (where failures > 0) as failed, count(*) > look.cap as is_more
    from (select row.failures
          from generate_series(0, 9) as lane(priority)
          cross join lateral (select q.failures from pgworker.job_queue q
                              where q.queue = name.queue and q.priority = lane.priority and q.run_at <= look.now
                              order by q.run_at, q.job_id limit look.cap + 1) as row
          limit look.cap + 1) as seen
) as due
cross join lateral (
    select least(count(*), look.cap) as jobs, count(*) filter (where failures > 0) as failed, count(*) > look.cap as is_more
    from (select row.failures
          from generate_series(0, 9) as lane(priority)
          cross join lateral (select q.failures from pgworker.job_queue q
                              where q.queue = name.queue and q.priority = lane.priority and q.run_at > look.now
                              order by q.run_at, q.job_id limit look.cap + 1) as row
          limit look.cap + 1) as seen
) as ahead
order by name.queue
