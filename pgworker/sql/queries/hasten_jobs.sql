-- What waits of these jobs is due now. The one update of job_queue: for tests, which can't wait until it is.
update pgworker.job_queue set run_at = clock_timestamp()
where job_id = any (%(job_ids)s::uuid[]) and run_at > clock_timestamp()
