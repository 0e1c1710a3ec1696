-- Jobs whose day had no partition; up to 10,001 are counted.
select pgworker.count_default_jobs()
