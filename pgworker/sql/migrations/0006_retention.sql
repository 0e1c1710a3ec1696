-- Retention: partitions of expired days are dropped, and what must stay of them moves to the partition before all days,
-- jobs_before_YYYYMMDD. That one is written anew each time and takes the place of its predecessor, so there are never more
-- partitions than days kept, however long some jobs wait: every claim locks every partition.
--
-- Nobody waits while rows are copied. Only at the end are the tables locked, for milliseconds, and never while a reader
-- is waited for longer than 50 ms. What is written to expired days meanwhile is noted by triggers and copied in the end.

create table pgworker.partition_writes (job_id uuid not null);
comment on table pgworker.partition_writes is 'jobs of expired days that something was written of while their days were being dropped';

create function pgworker.note_partition_write() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_argv[0] = 'jobs' then
        insert into pgworker.partition_writes values (new.id);
    else
        insert into pgworker.partition_writes values (new.job_id);
    end if;
    return null;
end $$;

-- The first day that is kept. Ids of enqueues may be a day old: nothing younger is ever dropped.
create function pgworker.expired_until(older_than interval) returns date
    language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if older_than is null or older_than < interval '1 day' then
        raise exception 'jobs are kept for at least 1 day, not %', coalesce(older_than::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    return ((clock_timestamp() - older_than) at time zone 'UTC')::date;
end $$;

-- Partitions that hold ids of days before this one, as far as this package made them. `day` is null for the default one;
-- for the one before all days it is the first day that it no longer covers.
create function pgworker.expired_partitions(until date) returns table (parent text, child text, kind text, day date)
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    select found.* from (
        select parent.relname::text, child.relname::text, coalesce(substring(child.relname from '_(before|default)'), 'day'),
               to_date(substring(child.relname from '_([0-9]{8})$'), 'YYYYMMDD')
        from pg_inherits
        join pg_class child on child.oid = inhrelid
        join pg_class parent on parent.oid = inhparent
        where parent.oid in ('pgworker.jobs'::regclass, 'pgworker.job_executions'::regclass)
          and child.relname ~ ('^' || parent.relname || '_(default|(before_)?[0-9]{8})$')
    ) as found(parent, child, kind, day)
    where day is null or day < until
$$;

-- Whatever of these days outlives them: what waits or is claimed, and what ended within the last day, so that whoever
-- waits for the end of a job sees it.
create function pgworker.jobs_to_keep(beyond uuid) returns table (id uuid)
    language sql stable set search_path = pg_catalog, pg_temp
as $$
    select job_id from pgworker.job_queue where job_id < beyond
    union
    select held.job_id from pgworker.job_leases, unnest(job_ids) as held(job_id) where held.job_id < beyond
    union
    select job_id from pgworker.job_executions where job_id < beyond and finished_at > clock_timestamp() - interval '1 day'
$$;

-- Lock two tables for DDL, the one that a settle takes first before the other, or fail within 50 ms: until then, claims wait
-- behind us.
create function pgworker.lock_for_ddl(executions text, jobs text) returns void
    language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '50ms'
as $$
declare
    asked_at timestamptz := clock_timestamp();
begin
    execute format('lock table only pgworker.%I in access exclusive mode', executions);
    perform set_config('lock_timeout',
                       greatest(1, 50 - ceil(extract(epoch from clock_timestamp() - asked_at) * 1000))::text, true);
    execute format('lock table only pgworker.%I in access exclusive mode', jobs);
end $$;

-- One maker or dropper of partitions at a time.
create function pgworker.lock_keeping() returns void
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock(1885828976, 0) then
        raise exception 'somebody else makes or drops partitions at this moment' using errcode = 'lock_not_available';
    end if;
end $$;

-- What would be dropped, with everything before it: the days that have expired, what is before all days, and the rows of
-- expired days in the default partition. Up to 100,000 rows are counted, more are estimated.
create function pgworker.list_expired_partitions(older_than interval)
    returns table (name text, day date, jobs bigint, executions bigint, kept bigint, bytes bigint)
    language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
as $$
declare
    until date := pgworker.expired_until(older_than);
    beyond uuid := pgworker.uuid7_first(until::timestamptz);
    keep uuid[];
    found record;
    beside text;
begin
    if not exists (select from pgworker.expired_partitions(until) where kind <> 'default')
       and not exists (select from pgworker.jobs_default where id < beyond) then
        return;
    end if;
    keep := array(select id from pgworker.jobs_to_keep(beyond));
    for found in
        select child, kind, expired.day from pgworker.expired_partitions(until) as expired
        where parent = 'jobs' order by expired.day nulls last
    loop
        beside := 'job_executions' || substr(found.child, 5);
        name := found.child;
        day := case when found.kind = 'day' then found.day end;
        jobs := pgworker.count_rows(found.child, 'id', beyond);
        executions := pgworker.count_rows(beside, 'job_id', beyond);
        continue when found.kind = 'default' and jobs = 0 and executions = 0;
        execute format('select count(*) from unnest($1) as keep(id) join pgworker.%I as job using (id)', found.child)
            into kept using keep;
        bytes := case when found.kind = 'default' then 0
                      else pg_total_relation_size(format('pgworker.%I', found.child)::regclass)
                           + pg_total_relation_size(format('pgworker.%I', beside)::regclass) end;
        return next;
    end loop;
end $$;

create function pgworker.count_rows(child text, key text, beyond uuid) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    seen bigint;
begin
    execute format('select count(*) from (select from pgworker.%I where %I < $1 limit 100001) as seen', child, key)
        into seen using beyond;
    if seen > 100000 then
        select greatest(seen, reltuples::bigint) into seen
        from pg_class where oid = format('pgworker.%I', child)::regclass;
    end if;
    return seen;
end $$;

-- The first half of dropping: from its commit on, whatever is written to the expired partitions is noted. That it could
-- have the locks says that no long transaction is in the way of the second half.
create function pgworker.watch_expired_partitions(older_than interval) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set timezone = 'UTC'
as $$
declare
    until date := pgworker.expired_until(older_than);
    found record;
begin
    perform pgworker.lock_keeping();
    perform pgworker.lock_for_ddl('job_executions', 'jobs');
    for found in select * from pgworker.expired_partitions(until) loop
        execute format('create or replace trigger note_write after insert on pgworker.%I '
                       'for each row execute function pgworker.note_partition_write(%L)', found.child, found.parent);
    end loop;
end $$;

-- The second half, in one transaction: copy what stays, lock, add what was noted meanwhile, and put the copy in place of
-- all that has expired. False: not every partition is watched, because midnight has passed; watch again.
create function pgworker.drop_expired_partitions(older_than interval) returns boolean
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set timezone = 'UTC'
as $$
declare
    until date := pgworker.expired_until(older_than);
    beyond uuid := pgworker.uuid7_first(until::timestamptz);
    kept_jobs text := 'jobs_before_' || to_char(until, 'YYYYMMDD');
    kept_executions text := 'job_executions_before_' || to_char(until, 'YYYYMMDD');
    tries integer := 0;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'partitions are dropped at READ COMMITTED only: what is written meanwhile must be seen'
            using errcode = 'invalid_transaction_state';
    end if;
    perform pgworker.lock_keeping();
    if exists (select from pgworker.expired_partitions('infinity') where kind = 'before' and day >= until) then
        return true; -- done already, by somebody who keeps no more than this
    end if;
    if exists (select from pgworker.expired_partitions(until) as expired
               where not exists (select from pg_trigger where tgname = 'note_write'
                                 and tgrelid = format('pgworker.%I', expired.child)::regclass)) then
        return false;
    end if;

    execute format('create table pgworker.%I (like pgworker.jobs including defaults including constraints '
                   'including comments including indexes, check (id < %L))', kept_jobs, beyond);
    execute format('create table pgworker.%I (like pgworker.job_executions including defaults including constraints '
                   'including comments including indexes, check (job_id < %L))', kept_executions, beyond);
    execute format('insert into pgworker.%I select job.* from pgworker.jobs_to_keep($1) as keep '
                   'cross join lateral (select * from pgworker.jobs where jobs.id = keep.id offset 0) as job', kept_jobs)
        using beyond;
    execute format('insert into pgworker.%I select e.* from pgworker.%I as keep cross join lateral '
                   '(select * from pgworker.job_executions where job_id = keep.id offset 0) as e', kept_executions, kept_jobs);
    execute format('delete from pgworker.jobs_default where id < $1 and not exists (select from pgworker.%I as keep '
                   'where keep.id = jobs_default.id) and id not in (select job_id from pgworker.partition_writes)', kept_jobs)
        using beyond;
    execute format('delete from pgworker.job_executions_default as e where job_id < $1 '
                   'and not exists (select from pgworker.%I as keep where keep.id = e.job_id) '
                   'and job_id not in (select job_id from pgworker.partition_writes)', kept_jobs)
        using beyond;

    loop
        tries := tries + 1;
        begin
            perform pgworker.swap_expired_partitions(until, beyond, kept_jobs, kept_executions);
            return true;
        exception when lock_not_available then
            if tries = 20 then
                raise;
            end if;
        end;
        perform pg_sleep(0.1 + 0.2 * random());
    end loop;
end $$;

create function pgworker.swap_expired_partitions(until date, beyond uuid, kept_jobs text, kept_executions text) returns void
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    found record;
begin
    perform pgworker.lock_for_ddl('job_executions', 'jobs');
    execute format('insert into pgworker.%I select job.* from (select distinct job_id from pgworker.partition_writes where job_id < $1) as noted '
                   'cross join lateral (select * from pgworker.jobs where jobs.id = noted.job_id offset 0) as job '
                   'on conflict do nothing', kept_jobs)
        using beyond;
    execute format('insert into pgworker.%I select e.* from (select distinct job_id from pgworker.partition_writes where job_id < $1) as noted '
                   'join pgworker.%I as keep on keep.id = noted.job_id cross join lateral '
                   '(select * from pgworker.job_executions where job_id = keep.id offset 0) as e on conflict do nothing',
                   kept_executions, kept_jobs)
        using beyond;
    delete from pgworker.partition_writes;
    for found in select * from pgworker.expired_partitions(until) loop
        if found.kind = 'default' then
            execute format('drop trigger note_write on pgworker.%I', found.child);
        else
            execute format('alter table pgworker.%I detach partition pgworker.%I', found.parent, found.child);
            execute format('drop table pgworker.%I', found.child);
        end if;
    end loop;
    delete from pgworker.jobs_default where id < beyond;
    delete from pgworker.job_executions_default where job_id < beyond;
    execute format('alter table pgworker.jobs attach partition pgworker.%I for values from (minvalue) to (%L)',
                   kept_jobs, beyond);
    execute format('alter table pgworker.job_executions attach partition pgworker.%I for values from (minvalue) to (%L)',
                   kept_executions, beyond);
end $$;

-- Partitions of a day, as before; rows of that day that the default partitions had to take meanwhile move in.
-- The few that a late start leaves move within milliseconds; more stay where they are until their day has expired.
create or replace function pgworker.create_partition(day date) returns boolean
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set timezone = 'UTC'
as $$
declare
    lowest uuid := pgworker.uuid7_first(day::timestamptz);
    beyond uuid := pgworker.uuid7_first((day + 1)::timestamptz);
    suffix text := '_' || to_char(day, 'YYYYMMDD');
    missing text[] := array(select parent from unnest(array['job_executions', 'jobs']) as parent
                            where to_regclass('pgworker.' || parent || suffix) is null);
    most constant integer := 10000;
    strays bigint;
    parent text;
begin
    if cardinality(missing) = 0 then
        return false;
    end if;
    perform pgworker.lock_keeping();
    foreach parent in array missing loop
        execute format('create table pgworker.%I (like pgworker.%I including defaults including constraints including comments)',
                       parent || suffix, parent);
    end loop;
    select count(*) into strays from (
        select from pgworker.jobs_default where id >= lowest and id < beyond
        union all
        select from pgworker.job_executions_default where job_id >= lowest and job_id < beyond
        limit most + 1) as stray;
    if strays > most then
        raise exception 'more than % rows of % are in the default partition', most, day
            using errcode = 'program_limit_exceeded';
    end if;
    if strays > 0 then
        -- The parents: whoever has a plan that doesn't know the new partition must be done before rows move there.
        perform pgworker.lock_for_ddl('job_executions', 'jobs');
    end if;
    perform pgworker.lock_for_ddl('job_executions_default', 'jobs_default'); -- as attaching would do, one by one
    foreach parent in array missing loop
        if strays > 0 then
            execute format('with moved as (delete from pgworker.%I where %I >= $1 and %2$I < $2 returning *) '
                           'insert into pgworker.%I select * from moved',
                           parent || '_default', case parent when 'jobs' then 'id' else 'job_id' end, parent || suffix)
                using lowest, beyond;
        end if;
        execute format('alter table pgworker.%I attach partition pgworker.%I for values from (%L) to (%L)',
                       parent, parent || suffix, lowest, beyond);
    end loop;
    return true;
end $$;

-- The alarm: jobs whose day had no partition. Counted up to 10,001.
create function pgworker.count_default_jobs() returns bigint
    language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select count(*) from (select from pgworker.jobs_default limit 10001) as stray
$$;

-- One row per job, as before; a dead letter outlasts its row in jobs, so its copy stands in.
create or replace view pgworker.job_status as
select j.id, j.queue::text, j.task::text, j.org_id::text, j.priority::smallint, j.max_attempts::smallint, j.created_at,
       coalesce(q.run_at, j.run_at) as run_at,
       case when d.job_id is not null then 'dead_letter'
            when q.failures > 0 then 'failed'
            when q.run_at > clock_timestamp() then 'scheduled'
            when q.job_id is not null then 'pending'
            when l.lease_id is not null then 'running'
            when e.outcome = 'succeeded' then 'succeeded'
            when e.outcome = 'cancelled' then 'cancelled'
            else 'LOST' end as status,
       coalesce(d.execution, q.execution - 1, l.execution, e.execution, 0) as execution,
       coalesce(d.failures, q.failures, l.failures, e.failures, 0) as failures,
       l.lease_id, l.worker_id, e.outcome as last_outcome, e.finished_at, e.error, e.result, e.cause
from pgworker.jobs j
left join pgworker.job_queue q on q.job_id = j.id
left join pgworker.dead_letter_jobs d on d.job_id = j.id
left join lateral (select * from pgworker.job_executions x where x.job_id = j.id order by x.execution desc limit 1) e on true
left join (select held.job_id, held.execution, held.failures, lease.lease_id, lease.worker_id
           from pgworker.job_leases lease,
                unnest(lease.job_ids, lease.executions, lease.failures) as held(job_id, execution, failures)) l
       on l.job_id = j.id and l.execution > coalesce(e.execution, 0)
union all
select d.job_id, d.queue, d.task, d.org_id, d.priority, d.max_attempts, d.created_at, d.run_at, 'dead_letter',
       d.execution, d.failures, null, null, d.outcome, d.died_at, d.error, null, d.cause
from pgworker.dead_letter_jobs d
left join lateral (select true as is_stored from pgworker.jobs where jobs.id = d.job_id offset 0) as job on true
where job.is_stored is null;

revoke all on pgworker.partition_writes, pgworker.job_status from public;
revoke all on function pgworker.note_partition_write(), pgworker.expired_until(interval), pgworker.expired_partitions(date),
    pgworker.jobs_to_keep(uuid), pgworker.lock_for_ddl(text, text), pgworker.lock_keeping(),
    pgworker.list_expired_partitions(interval), pgworker.count_rows(text, text, uuid),
    pgworker.watch_expired_partitions(interval), pgworker.drop_expired_partitions(interval),
    pgworker.swap_expired_partitions(date, uuid, text, text), pgworker.create_partition(date),
    pgworker.count_default_jobs() from public;
