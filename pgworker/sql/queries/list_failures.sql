-- The latest executions that were charged against their job, by the index of those.
select e.job_id, e.execution, coalesce(job.task, ''), coalesce(job.queue, ''), e.outcome::text, e.finished_at,
       e.error->>'type', left(e.error->>'message', %(letters)s::integer), left(e.cause, %(letters)s::integer)
from (select job_id, execution, outcome, finished_at, error, cause
      from pgworker.job_executions
      where outcome in ('failed', 'timed_out', 'crashed')
      order by finished_at desc
      limit %(limit)s) as e
left join lateral (select task, queue from pgworker.jobs where jobs.id = e.job_id offset 0) as job on true
order by e.finished_at desc, e.job_id
