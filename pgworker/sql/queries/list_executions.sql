-- The ended executions of one job, the latest first, and the worker process of each as far as it is still known.
select e.execution, e.outcome::text, e.failures, e.started_at, e.finished_at, e.cause, e.error::text, e.result::text,
       e.worker_id, w.host, w.pid, w.number::integer
from pgworker.job_executions e
left join pgworker.worker_heartbeats w on w.worker_id = e.worker_id
where e.job_id = %(job_id)s::uuid
order by e.execution desc
limit %(limit)s
