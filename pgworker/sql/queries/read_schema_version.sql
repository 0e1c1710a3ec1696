select version, name from pgworker.schema_migrations order by version desc limit 1
