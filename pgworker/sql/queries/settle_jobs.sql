-- End the executions at positions first..last of a lease, and the lease itself if `ends_lease` and this is the server that it
-- was claimed from: a standby that was promoted since may not have heard of what was settled before. A null in started_us
-- leaves its position alone.
-- The fence: no lease, or positions that were released, and nothing is written; the caller compares the counts.
-- A part is settled under KEY SHARE, which no renewal waits for; the end of a lease is DELETE ... RETURNING. Never both.
-- next: 0 the job has ended, 1 it goes back to job_queue, at run_at or after its delay, 2 it becomes a dead letter. A
-- cancelled job does neither.
-- A settle that is_repeated finds its rows there already: it inserts none, so it requeues none. One that is not but was
-- recorded all the same, a moment ago by a connection given up, violates a key. (ON CONFLICT DO NOTHING for all would
-- look up the key twice, and write 48 bytes more of WAL for each row.)
-- commit_within_ms: how long the transaction may stay open after this, as the lease is locked; null where COMMIT follows
-- on the same trip. Set here, and not by a statement beside it in a pipeline: a Flush that the driver sends after that
-- would stop the server's clock.
with part as materialized (
    select worker_id, job_ids, executions, failures, cancelled from pgworker.job_leases
    where lease_id = %(lease_id)s::uuid
      and not (%(ends_lease)s::boolean and coalesce(%(server)s::timestamptz = pg_postmaster_start_time(), true))
    for key share
), whole as (
    delete from pgworker.job_leases
    where lease_id = %(lease_id)s::uuid
      and %(ends_lease)s::boolean and coalesce(%(server)s::timestamptz = pg_postmaster_start_time(), true)
    returning worker_id, job_ids, executions, failures, cancelled
), lease as materialized (
    select * from part union all select * from whole
), run as (  -- in the select list, where unnest is a third of the price that it has in FROM
    select lease.worker_id, lease.cancelled, generate_series(%(first)s::integer, %(last)s::integer) as position,
           unnest(lease.job_ids[%(first)s::integer:%(last)s::integer]) as job_id,
           unnest(lease.executions[%(first)s::integer:%(last)s::integer]) as execution,
           unnest(lease.failures[%(first)s::integer:%(last)s::integer]) as failures,
           unnest(%(started_us)s::bigint[]) as started_us, unnest(%(finished_us)s::bigint[]) as finished_us,
           unnest(%(outcomes)b::text[]) as outcome, unnest(%(charges)s::smallint[]) as charge,
           unnest(%(nexts)s::smallint[]) as next, unnest(%(delays_ms)s::bigint[]) as delay_ms,
           unnest(%(run_ats)s::timestamptz[]) as run_at,
           unnest(%(errors)b::text[]) as error, unnest(%(results)b::text[]) as result
    from lease
), ended as materialized (
    select run.worker_id, run.job_id, run.execution, run.position,
           run.failures + coalesce(run.charge, 0) as failures, run.next, run.delay_ms, run.run_at as asked_for,
           case when coalesce(run.next, 0) > 0 and run.job_id = any (run.cancelled) then 'cancelled'
                else coalesce(run.outcome, 'succeeded') end as outcome,
           clock_timestamp() - run.started_us * interval '1 microsecond' as started_at,
           clock_timestamp() - run.finished_us * interval '1 microsecond' as finished_at,
           run.error, run.result
    from run
    where run.job_id is not null and run.started_us is not null
      and not (%(is_repeated)s::boolean and pgworker.is_recorded(run.job_id, run.execution))
), recorded as (
    insert into pgworker.job_executions
        (job_id, lease_id, worker_id, started_at, finished_at, execution, outcome, position, failures, error, result)
    select job_id, %(lease_id)s::uuid, worker_id, started_at, finished_at, execution,
           outcome::pgworker.execution_outcome, position, failures, error::jsonb, result::jsonb
    from ended
    returning job_id, execution, position, outcome
), onward as materialized (
    select ended.*, recorded.outcome as final, job.*
    from recorded join ended using (position)
    left join lateral pgworker.stored_job(ended.job_id) as job on true
    where ended.next > 0 and recorded.outcome <> 'cancelled'
), requeued as (
    insert into pgworker.job_queue (job_id, run_at, execution, priority, failures, queue, task, org_id)
    select job_id, greatest(coalesce(asked_for, clock_timestamp() + delay_ms * interval '1 millisecond'), clock_timestamp()),
           execution + 1, priority, failures, queue, task, org_id
    from onward where next = 1 and id is not null
    on conflict (job_id) do nothing
), buried as (
    insert into pgworker.dead_letter_jobs
        (job_id, died_at, created_at, run_at, timeout_ms, execution, priority, max_attempts, failures, outcome,
         queue, task, payload, org_id, unique_key, concurrency_key, headers, error)
    select job_id, clock_timestamp(), coalesce(created_at, started_at), coalesce(run_at, started_at), timeout_ms,
           execution, coalesce(priority, 5), coalesce(max_attempts, 1), failures, final,
           coalesce(queue, 'unknown'), coalesce(task, 'unknown'), coalesce(payload, '{}'), org_id, unique_key,
           concurrency_key, headers, error::jsonb
    from onward where next = 2 or id is null
    on conflict (job_id) do nothing
)
select (select count(*) from lease) as leases, (select count(*) from recorded) as recorded,
       case when %(commit_within_ms)s::bigint is not null
            then set_config('idle_in_transaction_session_timeout', %(commit_within_ms)s::bigint::text, true) end
