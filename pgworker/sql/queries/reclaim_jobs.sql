-- The second half of a reclaim, in a new snapshot, so that whatever the lease had settled is seen and left alone.
-- outcomes: one per position; null means never started. Where nobody could tell (assumed_running > 0), the first
-- unfinished positions count as running. Never started: back with a new number, no row, no charge.
-- suspects > 1: so many jobs ran, and nobody knows of which the worker died. Each is spared: lost, uncharged; a trial will
-- tell, see worker/runner.py. Not so where nobody could look, if the execution before ended so, too: what takes all of a
-- pool with it would never end. Nor of one that had_ended when its worker died: what kills as it is cleaned away would not, either.
-- Uncharged, or crashed for the first time: at once. Else after the backoff that the workers who serve this task announced
-- last, as whoever reclaims knows no app; the usual one if they announced none.
-- What was claimed was due, whatever later time it was once scheduled for, and keeps its place.
-- OFFSET 0 keeps the look-ups of executions and jobs one index scan each, where a join might read a week's history.
with held as (
    select * from unnest(%(job_ids)s::uuid[], %(executions)s::integer[], %(failures)s::smallint[], %(outcomes)s::text[],
                         %(started_us)s::bigint[])
                  with ordinality as held(job_id, execution, failures, outcome, started_us, position)
), unsettled as materialized (
    select held.job_id, held.execution, held.position, held.started_us, held.failures as failures_before,
           case when held.job_id = any (%(cancelled)s::uuid[]) then 'cancelled'
                when row_number() over (order by held.position) <= %(assumed_running)s::integer then 'crashed'
                else held.outcome end as outcome
    from held
    where not exists (select from pgworker.job_executions e
                      where e.job_id = held.job_id and e.execution = held.execution offset 0)
), suspected as materialized (
    select unsettled.*,
           case when unsettled.outcome is distinct from 'crashed'
                     or %(suspects)s::integer <= 1 and not %(had_ended)s::boolean then null
                else (%(assumed_running)s::integer > 0 or %(had_ended)s::boolean)
                     and pgworker.is_suspect(unsettled.job_id, unsettled.execution) end as again
    from unsettled
), judged as (
    select job_id, execution, position, started_us, failures_before,
           case when not again then 'lost' else outcome end as outcome,
           case when again is null then %(cause)s::text
                when again then %(cause_again)s::text else %(cause_spared)s::text end as cause,
           case when not again then %(error_spared)s::jsonb else %(error)s::jsonb end as error
    from suspected
), verdict as materialized (
    select judged.*, job.*,
           judged.failures_before
           + case when judged.outcome in ('failed', 'timed_out', 'crashed') then 1 else 0 end as failures
    from judged
    left join lateral (select * from pgworker.jobs where jobs.id = judged.job_id offset 0) as job on true
), recorded as (
    insert into pgworker.job_executions
        (job_id, lease_id, worker_id, started_at, finished_at, execution, outcome, position, failures, error, cause)
    select job_id, %(lease_id)s::uuid, %(worker_id)s::uuid,
           clock_timestamp() - started_us * interval '1 microsecond', clock_timestamp(), execution,
           outcome::pgworker.execution_outcome, position, failures,
           case when outcome in ('failed', 'timed_out', 'crashed', 'lost', 'released') then error end, cause
    from verdict where outcome is not null
    on conflict (job_id, execution) do nothing
), requeued as (
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select job_id,
           case when failures = failures_before or (failures <= 1 and outcome = 'crashed') then least(run_at, clock_timestamp())
                else clock_timestamp() + least(backoff.cap, backoff.base * power(2, least(failures - 1, 30)))
                     * (1 + backoff.jitter * random()) * interval '1 second' end,
           execution + 1, priority, failures, queue, task, org_id
    from verdict
    left join lateral (
        select served.backoffs -> verdict.task as announced from pgworker.served_tasks served
        where failures > failures_before and verdict.task = any (served.tasks)
        order by served.announced_at desc limit 1) as latest on true
    cross join lateral (
        select coalesce((latest.announced -> 0)::float8, %(backoff_base)s::float8) as base,
               coalesce((latest.announced -> 1)::float8, %(backoff_cap)s::float8) as cap,
               coalesce((latest.announced -> 2)::float8, %(backoff_jitter)s::float8) as jitter) as backoff
    where id is not null and outcome is distinct from 'cancelled' and failures < max_attempts
    on conflict (job_id) do nothing
    returning job_id, run_at
), buried as (
    insert into pgworker.dead_letter_jobs
        (job_id, died_at, created_at, run_at, timeout_ms, execution, priority, max_attempts, failures, outcome,
         queue, task, payload, org_id, unique_key, concurrency_key, headers, error, cause)
    select job_id, clock_timestamp(), coalesce(created_at, clock_timestamp()), coalesce(run_at, clock_timestamp()),
           timeout_ms, execution, coalesce(priority, 5), coalesce(max_attempts, 1), failures,
           coalesce(outcome, 'lost')::pgworker.execution_outcome, coalesce(queue, 'unknown'), coalesce(task, 'unknown'),
           coalesce(payload, '{}'), org_id, unique_key, concurrency_key, headers, error, cause
    from verdict
    where outcome is distinct from 'cancelled' and (id is null or failures >= max_attempts)
    on conflict (job_id) do nothing
    returning job_id
)
select verdict.job_id, verdict.execution, verdict.outcome, verdict.failures, verdict.task, verdict.queue, verdict.priority,
       requeued.run_at, buried.job_id is not null as is_dead, verdict.org_id, verdict.started_us, verdict.cause
from verdict
left join requeued on requeued.job_id = verdict.job_id
left join buried on buried.job_id = verdict.job_id
order by verdict.position
