-- Until this transaction ends, plan for tables that are larger than their statistics say. A plan made while job_queue was
-- empty, or after a vacuum had found it empty, prefers reading all of it and sorting; it stays cached while the table grows.
-- The generic plan is the only one wanted, and planning anew at each claim would cost more than the claim. Without
-- enable_sort and enable_seqscan older servers add 10^10 to a cost, which the JIT takes for work.
-- A limit in milliseconds for each statement goes the same way; null: as it is. The answer ends with what tells this
-- server from another one that the same connection of a pooler may lead to after a failover.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('jit', 'off', true),
       set_config('statement_timeout', coalesce(%(limit_ms)s::text, current_setting('statement_timeout')), true),
       pg_postmaster_start_time()
