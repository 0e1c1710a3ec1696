-- What became of these jobs: a row for each that has ended, and one without a status for each that is not there.
-- The look-ups run once per job and can't become joins (OFFSET 0, LIMIT 1): one index scan each, in one partition.
select asked.job_id, ended.status, dead.outcome::text, dead.failures::integer, last.result::text, dead.error::text,
       coalesce(dead.cause, last.cause)
from unnest(%(job_ids)s::uuid[]) as asked(job_id)
left join lateral (
    select d.job_id, d.outcome, d.failures, d.error, d.cause
    from pgworker.dead_letter_jobs d where d.job_id = asked.job_id offset 0) as dead on true
left join lateral (
    select e.outcome, e.result, e.cause from pgworker.job_executions e where e.job_id = asked.job_id
    order by e.execution desc limit 1) as last on true
left join lateral (
    select j.id from pgworker.jobs j where j.id = asked.job_id offset 0) as job on true
cross join lateral (
    select case when dead.job_id is not null then 'dead_letter'
                when last.outcome in ('succeeded', 'cancelled') then last.outcome::text end as status) as ended
where ended.status is not null or job.id is null
