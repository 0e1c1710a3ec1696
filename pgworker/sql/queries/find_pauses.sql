-- Of these queues those that are paused, and for how many seconds they have been.
select name, extract(epoch from clock_timestamp() - updated_at)::float8
from pgworker.queues where name = any (%(names)s::text[]) and paused
