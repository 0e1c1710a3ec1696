-- The days whose partitions must be there: yesterday (ids that a producer made), today and the two ahead.
select (clock_timestamp() at time zone 'UTC')::date + ahead from generate_series(-1, 2) as ahead
