-- A net below those who delete what a job said when it ends for good: whatever is a day old, of a job that is nowhere.
delete from pgworker.job_progress p
where p.updated_at < clock_timestamp() - interval '1 day'
  and not exists (select from pgworker.job_queue q where q.job_id = p.job_id)
  and not exists (select from pgworker.dead_letter_jobs d where d.job_id = p.job_id)
  and not exists (select from pgworker.job_leases l where p.job_id = any (l.job_ids))
