-- Give the tail of a lease, from position `first` on, back to job_queue: not started, not charged, where it stood when it was
-- enqueued.
-- What was claimed was due, or made so by a hasten: it does not wait for a later time that it was once scheduled for. Only
-- what `jobs run` claims may not be due: it hands back by a settle, which has the time.
-- FOR UPDATE: a settle that comes after it finds the tail gone. SKIP LOCKED: a settle under way is not waited for.
-- From position 1 the lease itself goes. Jobs cancelled meanwhile are recorded instead of requeued, and a job whose row in
-- jobs is missing becomes a dead letter.
-- Whoever sleeps is told, as by an enqueue: a long job may have held these up.
-- Always one row or more. `is_busy`: the lease is there, but locked. The other columns tell the lanes.
with lease as materialized (
    select * from pgworker.job_leases where lease_id = %(lease_id)s::uuid for update skip locked
), back as materialized (
    select tail.*, tail.job_id = any (lease.cancelled) as is_cancelled
    from lease, unnest(lease.job_ids[%(first)s::integer:], lease.executions[%(first)s::integer:],
                       lease.failures[%(first)s::integer:]) as tail(job_id, execution, failures)
), dropped as (
    delete from pgworker.job_leases using lease where job_leases.lease_id = lease.lease_id and %(first)s::integer = 1
), shortened as (
    update pgworker.job_leases
    set job_ids = lease.job_ids[:%(first)s::integer - 1], executions = lease.executions[:%(first)s::integer - 1],
        failures = lease.failures[:%(first)s::integer - 1]
    from lease where job_leases.lease_id = lease.lease_id and %(first)s::integer > 1
), found as materialized (
    select back.job_id, back.execution, back.failures, job.*
    from back left join lateral (select * from pgworker.jobs where jobs.id = back.job_id offset 0) as job on true
    where not back.is_cancelled
), requeued as (
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select job_id, least(run_at, clock_timestamp()), execution, priority, failures, queue, task, org_id
    from found where id is not null
    on conflict (job_id) do nothing
    returning job_id, run_at, queue, priority
), buried as (
    insert into pgworker.dead_letter_jobs
        (job_id, died_at, created_at, run_at, execution, priority, max_attempts, failures, outcome, queue, task, payload, cause)
    select job_id, clock_timestamp(), clock_timestamp(), clock_timestamp(), execution, 5, 1, failures, 'lost', 'unknown',
           'unknown', '{}', 'its row in pgworker.jobs is missing'
    from found where id is null
    on conflict (job_id) do nothing
), recorded as (
    insert into pgworker.job_executions (job_id, worker_id, finished_at, execution, outcome, failures)
    select back.job_id, lease.worker_id, clock_timestamp(), back.execution, 'cancelled', back.failures
    from back, lease where back.is_cancelled
    on conflict (job_id, execution) do nothing
), forgotten as (
    delete from pgworker.job_progress p using back where back.is_cancelled and p.job_id = back.job_id
)
select answer.is_busy, lane.queue, lane.priority, lane.run_at, lane.job_id, lane.jobs, lane.told
from (select not exists (select from lease)
             and exists (select from pgworker.job_leases where lease_id = %(lease_id)s::uuid) as is_busy) as answer
left join (select queue, priority, min(run_at) as run_at, min(job_id::text)::uuid as job_id, count(*) as jobs,
                  case when pgworker.somebody_sleeps(queue) then pg_notify('pgworker', queue || '=' || count(*)) end as told
           from requeued group by queue, priority) as lane on true
