-- Enqueue one job in the caller's transaction. Returns its id, as those of many.
select array_send(array[pgworker.enqueue(
    task => %(task)s::text, payload => %(payload)s::text::jsonb, queue => %(queue)s::text,
    priority => %(priority)s::integer, run_at => %(run_at)s::timestamptz, max_attempts => %(max_attempts)s::integer,
    timeout => %(timeout_ms)s::bigint * interval '1 millisecond', org_id => %(org_id)s::text,
    headers => %(headers)s::text::jsonb, id => %(id)s::uuid)])
