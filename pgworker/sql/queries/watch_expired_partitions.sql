-- Before copying what stays of expired partitions: note what is written to them from now on.
select pgworker.watch_expired_partitions(%(older_than)s::float8 * interval '1 second')
