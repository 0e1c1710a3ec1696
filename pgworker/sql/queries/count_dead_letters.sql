-- Dead letters, counted up to `cap` + 1.
select count(*) from (select from pgworker.dead_letter_jobs limit %(cap)s::integer + 1) as seen
