-- What plan_by_index and BEGIN say for each transaction, once for a session that is one's own: a pooler gives its clients
-- pids that are not a backend's, and the session to others. No row, and nothing is set: it is not.
-- The answer is when the server started that this session will stay with.
select pg_postmaster_start_time(),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
       set_config('enable_sort', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('jit', 'off', false), set_config('statement_timeout', %(limit_ms)s::integer::text, false)
where pg_backend_pid() = %(pid)s::integer
