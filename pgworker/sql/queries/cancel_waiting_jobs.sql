-- Cancel jobs that wait: out of job_queue, and an execution row that says so.
with gone as (
    delete from pgworker.job_queue where job_id = any (%(job_ids)s::uuid[]) returning job_id, execution, failures
), forgotten as (
    delete from pgworker.job_progress p using gone where p.job_id = gone.job_id
)
insert into pgworker.job_executions (job_id, finished_at, execution, outcome, failures, cause)
select job_id, clock_timestamp(), execution, 'cancelled', failures, 'cancelled while it waited' from gone
returning job_id
