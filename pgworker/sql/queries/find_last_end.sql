-- The last worker of a queue that has ended, within an hour: how many seconds ago, and how.
select extract(epoch from clock_timestamp() - ended_at)::float8, ended_how
from pgworker.worker_heartbeats
where ended_at > clock_timestamp() - interval '1 hour' and queues @> array[%(queue)s::text]
order by ended_at desc limit 1
