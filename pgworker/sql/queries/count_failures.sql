-- Executions that were charged against their job within the last seconds, counted up to `cap` + 1.
select count(*)
from (select
      from pgworker.job_executions
      where outcome in ('failed', 'timed_out', 'crashed')
        and finished_at > (select clock_timestamp() - %(seconds)s::float8 * interval '1 second')
      limit %(cap)s::integer + 1) as seen
