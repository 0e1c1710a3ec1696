-- What would be dropped of days older than this, and how many of its jobs would be kept.
select name, day, jobs, executions, kept, bytes
from pgworker.list_expired_partitions(%(older_than)s::float8 * interval '1 second')
