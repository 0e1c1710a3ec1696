-- Ids of the latest dead letters that died at or before a time (null: until now).
select job_id, died_at
from pgworker.dead_letter_jobs
where died_at <= coalesce(%(until)s::timestamptz, clock_timestamp())
  and (%(queue)s::text is null or queue = %(queue)s::text)
  and (%(task)s::text is null or task = %(task)s::text)
  and (%(org_id)s::text is null or org_id = %(org_id)s::text)
order by died_at desc, job_id
limit %(limit)s
