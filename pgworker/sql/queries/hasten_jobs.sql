-- What waits of these jobs for a later time is due now. Out of job_queue and in again, as rows there are never updated: a
-- cancel of many deletes by ctid what it has locked, and would miss a newer version. Whoever sleeps is woken, as many
-- as there are jobs.
with later as (
    delete from pgworker.job_queue where job_id = any (%(job_ids)s::uuid[]) and run_at > clock_timestamp()
    returning job_id, execution, priority, failures, queue, task, org_id
), due as (
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select job_id, clock_timestamp(), execution, priority, failures, queue, task, org_id from later
    returning job_id, queue
), told as materialized (
    select queue, pg_notify('pgworker', queue || '=' || count(*)) from due group by queue
)
select due.job_id from due join told using (queue)
