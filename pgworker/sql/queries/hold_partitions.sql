-- Until this transaction ends, no partition is made or dropped: who sees a row in jobs can rely on it.
select pg_advisory_xact_lock_shared(1885828976, 0)
