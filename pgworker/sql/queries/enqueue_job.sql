-- Enqueue one job in the caller's transaction. Returns a list with its id. As enqueue_jobs, whose arrays take three times as
-- long to bind.
select pgworker.enqueue_many(
    tasks => array[%(task)s::text], payloads => array[%(payload)s::text::jsonb], queues => array[%(queue)s::text],
    priorities => array[%(priority)s::smallint], run_ats => array[%(run_at)s::timestamptz],
    max_attempts => array[%(max_attempts)s::smallint], timeouts_ms => array[%(timeout_ms)s::bigint],
    org_ids => array[%(org_id)s::text], headers => array[%(headers)s::text::jsonb], ids => array[%(id)s::uuid])
