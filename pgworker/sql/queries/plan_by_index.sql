-- Plan for tables that are larger than their statistics say. A plan made while job_queue was empty, or after a vacuum had
-- found it empty, prefers reading all of it and sorting; it stays cached while the table grows.
-- cache: as a rule the generic plan is the only one wanted, and planning anew at each claim would cost more than the claim.
-- A statement with a filter that is often absent is planned anew, so that what is absent costs nothing and what is there
-- finds its index. Without enable_sort and enable_seqscan older servers add 10^10 to a cost, which the JIT takes for work.
-- limit_ms: how long each statement may take; null: as it is.
-- pid: null, and all that ends with this transaction. Or the session's, for as long as it lasts, if it is one's own: a
-- pooler gives its clients pids that are not a backend's, and the session to others. No row, and nothing is set: it is not.
-- The answer begins with when the server was started, which tells it from another one that the same connection of a pooler
-- may lead to after a failover.
select pg_postmaster_start_time(),
       set_config('default_transaction_isolation', 'read committed', is_local),
       set_config('enable_seqscan', 'off', is_local), set_config('enable_bitmapscan', 'off', is_local),
       set_config('enable_sort', 'off', is_local), set_config('plan_cache_mode', %(cache)s::text, is_local),
       set_config('jit', 'off', is_local),
       set_config('statement_timeout', coalesce(%(limit_ms)s::text, current_setting('statement_timeout')), is_local)
from (select %(pid)s::integer is null as is_local) as given
where is_local or pg_backend_pid() = %(pid)s::integer
