-- Old incarnations, a week after their last sign of life and only when no lease names them.
delete from pgworker.worker_heartbeats w
where w.beat_at < clock_timestamp() - interval '7 days'
  and not exists (select from pgworker.job_leases l where l.worker_id = w.worker_id)
