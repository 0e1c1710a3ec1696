-- Nothing more is claimed from these queues, by whichever worker. Returns those that were not paused before.
insert into pgworker.queues (name, paused, updated_at)
select name, true, clock_timestamp() from unnest(%(names)s::text[]) as asked(name) order by name
on conflict (name) do update set paused = true, updated_at = clock_timestamp() where not queues.paused
returning name
