-- Give dead letters up for good: the job ends as cancelled, and its history says who is to blame.
with gone as (
    delete from pgworker.dead_letter_jobs where job_id = any (%(job_ids)s::uuid[]) returning job_id, execution, failures
)
insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures, cause)
select job_id, clock_timestamp(), execution + 1, 'cancelled', failures, 'dead letter discarded' from gone
returning job_id
