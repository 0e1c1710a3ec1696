-- Until this transaction ends: plan_by_index, a limit in milliseconds for each statement (null: as it is), and
-- synchronous_commit (null: as it is). In one statement, as a trip is short and each one costs the client some 40 us.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('jit', 'off', true),
       set_config('statement_timeout', coalesce(%(limit_ms)s::text, current_setting('statement_timeout')), true),
       set_config('synchronous_commit', coalesce(%(commit)s::text, current_setting('synchronous_commit')), true)
