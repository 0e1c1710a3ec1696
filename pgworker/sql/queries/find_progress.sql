-- What a job said last of how far it is.
select execution, fraction, message, checkpoint, updated_at from pgworker.job_progress where job_id = %(job_id)s::uuid
