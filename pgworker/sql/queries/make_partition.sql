-- Partitions of one day; false: they are there already.
select pgworker.create_partition(%(day)s::date)
