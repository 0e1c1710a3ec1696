-- Of these jobs, those that have ended for good have nothing to say any more.
delete from pgworker.job_progress p
where p.job_id = any (%(job_ids)s::uuid[])
  and exists (select from pgworker.job_executions e
              where e.job_id = p.job_id and e.outcome in ('succeeded', 'cancelled') offset 0)
