-- End the next statements of this transaction after so many milliseconds, unless the role or the database has fewer.
select set_config('statement_timeout', least(%(limit)s, nullif(
    extract(epoch from current_setting('statement_timeout')::interval) * 1000, 0))::bigint::text, true)
