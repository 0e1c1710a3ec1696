-- Enqueue jobs in the caller's transaction; one array per column, all of one length. Returns their ids in
-- order, as one array in its binary form.
select array_send(pgworker.enqueue_jobs(
    tasks => %(tasks)b::text[], payloads => %(payloads)b::text[]::jsonb[], queues => %(queues)b::text[],
    priorities => %(priorities)s::smallint[], run_ats => %(run_ats)s::timestamptz[],
    max_attempts => %(max_attempts)s::smallint[], timeouts_ms => %(timeouts_ms)s::bigint[],
    org_ids => %(org_ids)b::text[], headers => %(headers)b::text[]::jsonb[], ids => %(ids)s::uuid[]))
