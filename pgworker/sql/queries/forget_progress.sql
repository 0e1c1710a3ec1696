-- These jobs have ended for good, unless they are still somewhere.
delete from pgworker.job_progress p
where p.job_id = any (%(job_ids)s::uuid[])
  and not exists (select from pgworker.job_queue q where q.job_id = p.job_id)
  and not exists (select from pgworker.dead_letter_jobs d where d.job_id = p.job_id)
