-- As plan_by_index, for statements with a filter that is often absent: each is planned anew for the values it gets, so
-- that what is absent costs nothing and what is there finds its index.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_sort', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true),
       set_config('jit', 'off', true)
