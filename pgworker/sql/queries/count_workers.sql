-- The workers of each host that have not said goodbye: with a beat in the last `silent_after` seconds, and without one.
-- After a day without a beat a host is a matter of the past.
select host, count(*) filter (where silence <= %(silent_after)s), count(*) filter (where silence > %(silent_after)s),
       min(silence)
from (select host, extract(epoch from clock_timestamp() - beat_at)::float8 as silence
      from pgworker.worker_heartbeats where ended_at is null) as worker
where silence < 86400
group by host
order by host
limit %(limit)s
