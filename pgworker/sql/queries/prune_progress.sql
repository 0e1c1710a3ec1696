-- What was said by jobs that have ended since behind everybody's back: cancelled while they waited, or reclaimed.
delete from pgworker.job_progress p
where p.updated_at < clock_timestamp() - interval '1 day'
  and not exists (select from pgworker.job_queue q where q.job_id = p.job_id)
  and not exists (select from pgworker.dead_letter_jobs d where d.job_id = p.job_id)
  and not exists (select from pgworker.job_leases l where p.job_id = any (l.job_ids))
