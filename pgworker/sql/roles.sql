-- Four roles that nobody logs in as, and the schema in the hands of the first. To repeat it changes nothing.
-- Run by a superuser, or by the schema's owner with CREATEROLE, who is a member of pgworker_owner from then on.

-- Before the statements that wait: shorter than deadlock_timeout, so that no claim is ever the victim.
set local lock_timeout = '500ms';

do $$
declare
    named text;
begin
    foreach named in array array['pgworker_owner', 'pgworker_enqueuer', 'pgworker_worker', 'pgworker_admin'] loop
        if to_regrole(named) is null then
            begin
                execute format('create role %I nologin', named);
            exception when duplicate_object or unique_violation then
                null; -- made for another database of this server, just now
            end;
        end if;
    end loop;
    select string_agg(rolname, ', ' order by rolname) into named from pg_roles
    where rolname in ('pgworker_owner', 'pgworker_enqueuer', 'pgworker_worker', 'pgworker_admin')
      and (rolcanlogin or rolsuper or rolcreaterole or rolbypassrls);
    if named is not null then
        raise exception 'these roles must have no powers of their own, not even LOGIN: %. Take them away with alter role', named
            using errcode = 'insufficient_privilege';
    end if;
    -- From PostgreSQL 16 on, who makes a role may grant it, but is no member that could act as it.
    if not pg_has_role(current_user, 'pgworker_owner',
                       case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end) then
        execute format('grant pgworker_owner to %I', current_user);
    end if;
end $$;

do $$
declare
    change text;
begin
    perform pg_advisory_xact_lock(1885828976, 0); -- create_partition's: none comes into being meanwhile
    for change in
        select 'alter schema pgworker' from pg_namespace
        where nspname = 'pgworker' and nspowner <> 'pgworker_owner'::regrole
        union all
        (select format('alter table %s', oid::regclass) from pg_class
         where relnamespace = 'pgworker'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
           and relowner <> 'pgworker_owner'::regrole
         order by relkind = 'S', oid) -- the sequence of a column goes with its table
        union all
        select format('alter type %s', oid::regtype) from pg_type
        where typnamespace = 'pgworker'::regnamespace and typtype in ('e', 'd', 'r') and typowner <> 'pgworker_owner'::regrole
        union all
        select format('alter routine %s', oid::regprocedure) from pg_proc
        where pronamespace = 'pgworker'::regnamespace and proowner <> 'pgworker_owner'::regrole
    loop
        execute change || ' owner to pgworker_owner';
    end loop;
end $$;
