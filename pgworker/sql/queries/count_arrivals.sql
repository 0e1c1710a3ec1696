-- Jobs of each queue that were enqueued within the last seconds, among the latest `cap` of all; and for how many seconds
-- back that tells the truth: fewer, if there were more. By the time in their ids.
with latest as materialized (
    select queue, created_at
    from pgworker.jobs
    where id > (select pgworker.uuid7_first(clock_timestamp() - %(seconds)s::float8 * interval '1 second'))
    order by id desc
    limit %(cap)s::integer
), span as materialized (
    select case when count(*) < %(cap)s::integer then %(seconds)s::float8
                else greatest(0.001, extract(epoch from clock_timestamp() - min(created_at)))::float8 end as seconds
    from latest
)
select queue, count(*), span.seconds from latest cross join span group by queue, span.seconds
