-- Enqueue jobs in the caller's transaction; one array per column, all of one length. Returns their ids in order.
select pgworker.enqueue_many(
    tasks => %(tasks)s::text[], payloads => %(payloads)s::text[]::jsonb[], queues => %(queues)s::text[],
    priorities => %(priorities)s::smallint[], run_ats => %(run_ats)s::timestamptz[],
    max_attempts => %(max_attempts)s::smallint[], timeouts_ms => %(timeouts_ms)s::bigint[],
    org_ids => %(org_ids)s::text[], headers => %(headers)s::text[]::jsonb[], ids => %(ids)s::uuid[])
