-- So many milliseconds for each statement, unless the role or the database has fewer: for this transaction (`is_local`), or
-- for the session, if that is one's own: a pooler gives its clients pids that are not a backend's. No row: it is not.
select set_config('statement_timeout', least(%(limit)s::integer, own.limit_ms)::text, %(is_local)s::boolean)
from (select nullif(extract(epoch from current_setting('statement_timeout')::interval) * 1000, 0)::integer as limit_ms) as own
where %(is_local)s::boolean or pg_backend_pid() = %(pid)s::integer
