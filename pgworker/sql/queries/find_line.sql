-- The jobs in front of a position of a lease that have not ended, in the order in which their worker starts them.
select held.job_id
from pgworker.job_leases lease
cross join lateral unnest(lease.job_ids, lease.executions) with ordinality as held(job_id, execution, position)
left join lateral (select e.execution from pgworker.job_executions e
                   where e.job_id = held.job_id and e.execution = held.execution offset 0) as settled on true
where lease.lease_id = %(lease_id)s::uuid and held.position < %(position)s::integer and settled.execution is null
order by held.position
