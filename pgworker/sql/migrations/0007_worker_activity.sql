-- What each worker does, as of its last heartbeat, for `pgworker workers`, `top` and `jobs explain`: a lease says who has
-- claimed a job, only its worker's board knows whether it runs. No column is indexed, so that beats stay HOT updates.
-- What a worker runs is told by lease and position: its monitor knows no job ids.

alter table pgworker.worker_heartbeats
    add column state text check (state in ('starting', 'idle', 'busy', 'draining', 'paused')),
    add column runs jsonb not null default '[]',
    add column jobs_done bigint not null default 0,
    add column uss_bytes bigint,
    add column cpu_seconds double precision;

comment on column pgworker.worker_heartbeats.state is 'null: its monitor has not said, or is of an earlier release';
comment on column pgworker.worker_heartbeats.runs is
    'what ran at beat_at, the longest first, at most 100: [{"lease": uuid, "position": 1, "age_us": 1000}]';
comment on column pgworker.worker_heartbeats.jobs_done is 'executions that this process has ended, however they ended';
comment on column pgworker.worker_heartbeats.uss_bytes is 'memory that it shares with no other process, looked at every 15 s';
comment on column pgworker.worker_heartbeats.cpu_seconds is 'CPU time it has used, as of the same look';
