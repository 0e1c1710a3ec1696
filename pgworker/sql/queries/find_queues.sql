-- Queues that are in use: jobs wait in them, or are among the latest, or a worker of the last days serves them.
with recursive step as (
    (select queue from pgworker.job_queue order by queue limit 1)
    union all
    select (select q.queue from pgworker.job_queue q where q.queue > step.queue order by q.queue limit 1)
    from step where step.queue is not null
)
(select queue from step where queue is not null limit %(limit)s::integer)
union
select queue from (select queue from pgworker.jobs order by id desc limit %(latest)s) as late
union
select unnest(queues) from pgworker.worker_heartbeats
order by queue
