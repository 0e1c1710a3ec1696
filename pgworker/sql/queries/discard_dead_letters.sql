-- Give dead letters up for good: the job ends as cancelled, and its history says who is to blame. Where retention has
-- dropped the job itself, nothing is left to say it of.
with gone as (
    delete from pgworker.dead_letter_jobs where job_id = any (%(job_ids)s::uuid[]) returning job_id, execution, failures
), recorded as (
    insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures, cause)
    select gone.job_id, clock_timestamp(), gone.execution + 1, 'cancelled', gone.failures, 'dead letter discarded'
    from gone cross join lateral (select id from pgworker.jobs where jobs.id = gone.job_id offset 0) as job
), forgotten as (
    delete from pgworker.job_progress p using gone where p.job_id = gone.job_id
)
select job_id from gone
