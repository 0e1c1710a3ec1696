-- Partitions of yesterday (ids that a producer made), today and the days ahead.
select pgworker.create_partition((clock_timestamp() at time zone 'UTC')::date + ahead) from generate_series(-1, 2) as ahead
