-- The latest failures, and how many there were in the last minute, for `pgworker top`. An execution is found by its job,
-- and a job by when it was enqueued; when something failed is in no other index. A partial one costs the others nothing:
-- executions that succeed are not in it. Making it reads the history once, and settles wait for that.

create index job_executions_failed on pgworker.job_executions (finished_at)
    where outcome in ('failed', 'timed_out', 'crashed');
