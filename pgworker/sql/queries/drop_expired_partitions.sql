-- Copy what stays of expired partitions, and put the copy in their place. False: watch them first.
select pgworker.drop_expired_partitions(%(older_than)s::float8 * interval '1 second')
