-- What a claim asks of a job that has run before: when its last execution ended, since when it waits again, and how often in
-- a row it was spared when its worker had died, perhaps of it; at least once if it was charged for that: then its trial was
-- long enough. By a function, as its plan would lock every partition else.

create function pgworker.last_execution(job_id uuid, execution integer, out ended_at timestamptz, out suspicions integer)
language plpgsql stable as $$
declare
    earlier record;
    least_suspicions integer := 0;
begin
    suspicions := 0;
    for earlier in
        select e.finished_at, e.outcome = 'crashed' as was_charged,
               coalesce(e.outcome = 'lost' and e.error ->> 'type' = 'pgworker.suspect', false) as was_spared
        from pgworker.job_executions e
        where e.job_id = last_execution.job_id and e.execution < last_execution.execution
        order by e.execution desc
    loop
        ended_at := coalesce(ended_at, earlier.finished_at);
        exit when not earlier.was_charged and not earlier.was_spared;
        suspicions := suspicions + earlier.was_spared::integer;
        least_suspicions := 1;
    end loop;
    suspicions := greatest(suspicions, least_suspicions);
end
$$;

comment on function pgworker.last_execution(uuid, integer) is
    'when the execution before this one ended, and how many before this one, without a gap, ended with their worker, perhaps of that job; 1 at least if it was charged for one';

revoke all on function pgworker.last_execution from public;
