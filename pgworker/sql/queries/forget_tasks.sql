-- Lists of tasks that no known worker shows, a week after they were last announced: one that is announced at this moment
-- and has not beaten yet is young.
delete from pgworker.served_tasks s
where s.announced_at < clock_timestamp() - interval '7 days'
  and not exists (select from pgworker.worker_heartbeats w where w.tasks_digest = s.digest)
