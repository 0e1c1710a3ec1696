-- The status of one job; null: no such job.
select pgworker.job_status(%(job_id)s::uuid)
