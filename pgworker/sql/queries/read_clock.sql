-- The time that everything here is measured by.
select clock_timestamp()
