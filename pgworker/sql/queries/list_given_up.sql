-- The latest dead letters, without what they carry.
select job_id, execution, task, queue, outcome::text, died_at,
       error->>'type', left(error->>'message', %(letters)s::integer), left(cause, %(letters)s::integer)
from pgworker.dead_letter_jobs
order by died_at desc, job_id
limit %(limit)s
