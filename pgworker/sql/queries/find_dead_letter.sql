-- One dead letter, the whole record; and what is enqueued when a job of its task is given up.
select d.job_id, d.queue, d.task, d.org_id, d.priority, d.created_at, d.run_at, d.died_at, d.execution, d.failures,
       d.max_attempts, d.timeout_ms / 1000.0::float8, d.outcome::text, d.payload::text, d.headers::text, d.error::text, d.cause,
       hook.handler, clock_timestamp()
from pgworker.dead_letter_jobs d
left join pgworker.dead_letter_hooks hook on hook.task = d.task
where d.job_id = %(job_id)s::uuid
