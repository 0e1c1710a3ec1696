-- Likewise for all of this session, if it is one: a pooler in transaction mode gives its clients a pid of its own making.
select set_config('statement_timeout', least(%(limit)s, nullif(
    extract(epoch from current_setting('statement_timeout')::interval) * 1000, 0))::bigint::text, false)
where pg_backend_pid() = %(pid)s
