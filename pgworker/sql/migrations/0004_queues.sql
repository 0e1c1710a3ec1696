-- Which tasks the living workers serve, so that a job which nobody will ever take can be told from one which waits its
-- turn. A list is stored once, under the digest that every worker of that app shows: a heartbeat, which is written every
-- few seconds, carries eight bytes of it.

create table pgworker.served_tasks (
    digest       bigint not null primary key,
    tasks        text[] not null,
    backoffs     jsonb not null,
    announced_at timestamptz not null default clock_timestamp()
);
comment on table pgworker.served_tasks is 'lists of tasks, each as some worker announced it when it connected';
comment on column pgworker.served_tasks.backoffs is 'base and cap in seconds, and jitter, of those tasks that don''t have the usual ones';

alter table pgworker.worker_heartbeats add column tasks_digest bigint;
comment on column pgworker.worker_heartbeats.tasks_digest is 'names the list in served_tasks; null: not known yet';

revoke all on pgworker.served_tasks from public;
