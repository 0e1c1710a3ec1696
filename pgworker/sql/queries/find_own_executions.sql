-- Which of these jobs this very lease has settled: the answer to a settle whose commit is unknown.
-- A reclaim writes the lease's id too, but always with a cause; what a lease settles itself has none.
select asked.job_id
from unnest(%(job_ids)s::uuid[], %(executions)s::integer[]) as asked(job_id, execution)
cross join lateral (select lease_id, cause from pgworker.job_executions e
                    where e.job_id = asked.job_id and e.execution = asked.execution offset 0) as own
where own.lease_id = %(lease_id)s::uuid and own.cause is null
