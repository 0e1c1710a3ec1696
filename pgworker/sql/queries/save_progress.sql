-- What running jobs said last. The fence is the lease, as for a settle; and an execution never writes over a later one.
-- The checkpoint that is not given stays.
insert into pgworker.job_progress (job_id, execution, fraction, message, checkpoint, updated_at)
select lease.job_ids[said.position], lease.executions[said.position], said.fraction, said.message,
       said.checkpoint::jsonb, clock_timestamp()
from unnest(%(lease_ids)s::uuid[], %(positions)s::integer[], %(fractions)s::float8[], %(messages)s::text[],
            %(checkpoints)s::text[]) as said(lease_id, position, fraction, message, checkpoint)
join pgworker.job_leases lease on lease.lease_id = said.lease_id and lease.job_ids[said.position] is not null
order by lease.job_ids[said.position]
on conflict (job_id) do update
set execution = excluded.execution, fraction = excluded.fraction, message = excluded.message,
    checkpoint = coalesce(excluded.checkpoint, job_progress.checkpoint), updated_at = excluded.updated_at
where job_progress.execution <= excluded.execution
