-- Enqueue jobs that differ in nothing but their payloads, in the caller's transaction. Returns their ids in order, as one
-- array in its binary form.
select array_send(pgworker.enqueue_many(
    task => %(task)s::text, payloads => %(payloads)b::text[]::jsonb[], queue => %(queue)s::text,
    priority => %(priority)s::integer, run_at => %(run_at)s::timestamptz, max_attempts => %(max_attempts)s::integer,
    timeout => %(timeout_ms)s::bigint * interval '1 millisecond', org_id => %(org_id)s::text,
    headers => %(headers)s::text::jsonb))
