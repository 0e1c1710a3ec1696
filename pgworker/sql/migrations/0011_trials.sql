-- What a claim asks of a job that has run before: when its last execution ended, since when it waits again, and how many in
-- a row were the end of their worker, or perhaps were. By a function, as its plan would lock every partition else.

create function pgworker.last_execution(job_id uuid, execution integer, out ended_at timestamptz, out suspicions integer)
language plpgsql stable as $$
declare
    earlier record;
begin
    suspicions := 0;
    for earlier in
        select e.finished_at, e.outcome = 'crashed' or coalesce(e.outcome = 'lost' and e.error ->> 'type' = 'pgworker.suspect', false)
                              as is_suspected
        from pgworker.job_executions e
        where e.job_id = last_execution.job_id and e.execution < last_execution.execution
        order by e.execution desc
    loop
        ended_at := coalesce(ended_at, earlier.finished_at);
        exit when not earlier.is_suspected;
        suspicions := suspicions + 1;
    end loop;
end
$$;

comment on function pgworker.last_execution(uuid, integer) is
    'when the execution before this one ended, and how many before this one, without a gap, ended with their worker, of that job or perhaps of it';

revoke all on function pgworker.last_execution from public;
