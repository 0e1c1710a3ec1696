-- What jobs of one lease said last. The fence: the lease is there, under the lock of a settle, so that none can end between
-- the look and the write, and the execution has not ended. An execution never writes over a later one, should a backend
-- that was given up for dead come back with this. A checkpoint that is not given stays.
with lease as materialized (
    select job_ids, executions from pgworker.job_leases where lease_id = %(lease_id)s::uuid for key share
), said as materialized (
    select lease.job_ids[said.position] as job_id, lease.executions[said.position] as execution,
           said.fraction, said.message, said.checkpoint
    from lease, unnest(%(positions)s::integer[], %(fractions)s::float8[], %(messages)s::text[], %(checkpoints)s::text[])
        as said(position, fraction, message, checkpoint)
)
insert into pgworker.job_progress (job_id, execution, fraction, message, checkpoint, updated_at)
select job_id, execution, fraction, message, checkpoint::jsonb, clock_timestamp() from said
where job_id is not null
  and not exists (select from pgworker.job_executions e
                  where e.job_id = said.job_id and e.execution = said.execution offset 0)
order by job_id
on conflict (job_id) do update
set execution = excluded.execution, fraction = excluded.fraction, message = excluded.message,
    checkpoint = coalesce(excluded.checkpoint, job_progress.checkpoint), updated_at = excluded.updated_at
where job_progress.execution <= excluded.execution
