select job_id, queue, task, org_id, died_at, execution, failures, max_attempts, outcome::text, payload::text, error::text, cause
from pgworker.dead_letter_jobs
where (%(queue)s::text is null or queue = %(queue)s::text)
  and (%(task)s::text is null or task = %(task)s::text)
  and (%(org_id)s::text is null or org_id = %(org_id)s::text)
order by died_at desc, job_id
limit %(limit)s
