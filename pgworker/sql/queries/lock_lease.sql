-- Whatever settles, releases or reclaims this lease comes before, and the next statement sees what it did; or after.
select from pgworker.job_leases where lease_id = %(lease_id)s::uuid for update
