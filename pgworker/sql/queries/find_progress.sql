-- The status of a job, null if there is none, and what it said last of how far it is.
select pgworker.job_status(asked.id), p.execution, p.fraction, p.message, p.checkpoint::text, p.updated_at
from (values (%(job_id)s::uuid)) as asked(id)
left join pgworker.job_progress p on p.job_id = asked.id
