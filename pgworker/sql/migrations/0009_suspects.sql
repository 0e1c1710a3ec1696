-- Who ran in a worker that died, when nobody could tell which of its jobs did that, goes back uncharged; not so the next
-- time. A claim asks for jobs that have run before only, and by a function: its plan would lock every partition else.

create function pgworker.is_suspect(job_id uuid, execution integer) returns boolean
language plpgsql stable as $$
begin
    return coalesce((select e.outcome = 'crashed' or (e.outcome = 'lost' and e.error ->> 'type' = 'pgworker.suspect')
                     from pgworker.job_executions e
                     where e.job_id = is_suspect.job_id and e.execution < is_suspect.execution
                     order by e.execution desc limit 1), false);
end
$$;

comment on function pgworker.is_suspect(uuid, integer) is
    'whether the worker of the last execution before this one died, of that job or perhaps of it';

revoke all on function pgworker.is_suspect from public;
