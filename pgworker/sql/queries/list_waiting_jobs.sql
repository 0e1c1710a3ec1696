-- Every job that waits, in the order of their ids. For tests: it reads them all.
select q.job_id, q.task, q.queue, q.priority, q.run_at, q.org_id, q.execution, q.failures, job.payload
from pgworker.job_queue q join pgworker.jobs job on job.id = q.job_id
order by q.job_id
