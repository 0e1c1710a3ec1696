-- Due jobs that no living worker will take, by queue and task: nobody serves the queue, or nobody there has the task.
-- Claims step over such jobs, so in time they stand at the head of their lane. There we look, no further than `cap` rows a
-- lane (fewer if there are more than ten queues), however long it is. A worker whose tasks are not known yet is taken to
-- have them all. The tasks with most jobs come first.
with recursive step as (
    (select queue from pgworker.job_queue order by queue limit 1)
    union all
    select (select q.queue from pgworker.job_queue q where q.queue > step.queue order by q.queue limit 1)
    from step where step.queue is not null
), name as materialized (
    select queue from step where queue is not null limit %(max_queues)s::integer
), look as materialized (
    select clock_timestamp() as now, least(%(cap)s::integer, 10 * %(cap)s::integer / greatest(1, count(*))) as cap from name
), living as materialized (
    select seen.queues, served.tasks
    from (select distinct queues, tasks_digest from pgworker.worker_heartbeats
          where ended_at is null and beat_at > clock_timestamp() - %(silent_after)s::float8 * interval '1 second') as seen
    left join pgworker.served_tasks served on served.digest = seen.tasks_digest
), head as materialized (
    select name.queue, first.task, count(*) as jobs, sum(count(*)) over (partition by name.queue, lane.priority) as looked_at
    from look
    cross join name
    cross join generate_series(0, 9) as lane(priority)
    cross join lateral (select q.task from pgworker.job_queue q
                        where q.queue = name.queue and q.priority = lane.priority and q.run_at <= look.now
                        order by q.run_at, q.job_id limit look.cap) as first
    group by name.queue, lane.priority, first.task
)
select head.queue, head.task, sum(head.jobs)::integer, bool_or(head.looked_at >= look.cap),
       exists (select from living where head.queue = any (living.queues))
from head cross join look
where not exists (select from living
                  where head.queue = any (living.queues) and (living.tasks is null or head.task = any (living.tasks)))
group by head.queue, head.task
order by sum(head.jobs) desc, head.queue, head.task
limit %(limit)s
