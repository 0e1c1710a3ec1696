-- Tenants: who this transaction works for, and users' own tables in which it sees that org's rows only.
-- The roles are not made here: see sql/roles.sql and sql/grants.sql.

-- For those who may not read the table: every login asks for it when it connects.
create function pgworker.schema_version() returns integer
    language sql stable security definer set search_path = pg_catalog, pg_temp
    return (select max(version) from pgworker.schema_migrations);

-- A setting of the transaction, empty after a SET LOCAL has ended, null before the first one. No SET clause: the planner
-- puts the expression in the place of the call, so that it can be the condition of an index.
create function pgworker.current_org() returns text
    language sql stable parallel safe
    return nullif(current_setting('pgworker.org_id', true), '');
comment on function pgworker.current_org is 'the org that this transaction works for; null: none, which sees nothing';

-- The table's owner calls it, with no more rights than his own. The restrictive policy is the fence: whatever policies
-- others add, none widens it. The other one only lets through, and there is one already where others were first.
create function pgworker.protect_table(target regclass, org_column name default 'org_id') returns void
    language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    org pg_attribute;
    value text := 'pgworker.current_org()';
    condition text;
    part regclass;
    named text;
begin
    if not exists (select from pg_class where oid = target and relkind in ('r', 'p')) then
        raise exception '% is not a table. Protect the tables under it.', target using errcode = 'wrong_object_type';
    end if;
    if exists (select from pg_class where oid = target and relnamespace = 'pgworker'::regnamespace) then
        raise exception '% is a table of pgworker itself, which grants protect: see pgworker migrate --roles.', target
            using errcode = 'wrong_object_type';
    end if;
    select inhparent::regclass into named from pg_inherits where inhrelid = target;
    if named is not null then
        raise exception '% is a part of %. Protect that one: its parts are protected with it.', target, named
            using errcode = 'wrong_object_type';
    end if;
    select * into org from pg_attribute where attrelid = target and attname = org_column and attnum > 0 and not attisdropped;
    if org.attname is null then
        raise exception '% has no column %. Add it (alter table % add column % text not null), or name another one.',
            target, quote_ident(org_column), target, quote_ident(org_column) using errcode = 'undefined_column';
    end if;
    if org.atttypid not in ('text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'integer'::regtype, 'bigint'::regtype) then
        raise exception 'the column % of % is of type %. It must be text, varchar, uuid, integer or bigint.',
            quote_ident(org_column), target, org.atttypid::regtype using errcode = 'datatype_mismatch';
    end if;
    if org.atttypid not in ('text'::regtype, 'varchar'::regtype) then
        value := format('%s::%s', value, org.atttypid::regtype);
    end if;
    condition := format('%I = %s', org_column, value);

    for part in
        with recursive tree(oid) as (
            select target::oid union all select inhrelid from pg_inherits join tree on inhparent = tree.oid
        ) select oid::regclass from tree
    loop
        execute format('alter table %s enable row level security, force row level security', part);
        for named in
            select polname from pg_policy where polrelid = part and polname in ('pgworker_org', 'pgworker_org_rows')
        loop
            execute format('drop policy %I on %s', named, part);
        end loop;
        execute format('create policy pgworker_org on %s as restrictive using (%s) with check (%s)', part, condition, condition);
        if not exists (select from pg_policy where polrelid = part and polpermissive) then
            execute format('create policy pgworker_org_rows on %s using (%s) with check (%s)', part, condition, condition);
        end if;
        -- TRUNCATE asks no policy. The owner keeps it, as he keeps ALTER TABLE.
        for named in
            select distinct case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end
            from pg_class cross join aclexplode(relacl) as acl
            where pg_class.oid = part and acl.privilege_type = 'TRUNCATE' and acl.grantee <> relowner
        loop
            execute format('revoke truncate on %s from %s cascade', part, named);
        end loop;
    end loop;
    if not org.atthasdef and org.attidentity = '' then
        execute format('alter table %s alter column %I set default %s', target, org_column, value);
    end if;

    for named in
        select indexrelid::regclass from pg_index where indrelid = target and indisunique and indkey[0] <> org.attnum
    loop
        raise warning 'the unique key % of % does not begin with %: a violation tells one org what another one has.',
            named, target, quote_ident(org_column)
            using hint = format('Make it unique over (%I, …) instead.', org_column);
    end loop;
    if not exists (select from pg_index where indrelid = target and indisvalid and indpred is null and indkey[0] = org.attnum) then
        raise notice 'no index of % begins with %: each query reads the rows of all orgs.', target, quote_ident(org_column)
            using hint = format('create index on %s (%I, …)', target, org_column);
    end if;
end $$;
comment on function pgworker.protect_table is
    'FORCE ROW LEVEL SECURITY on a table of one''s own: a transaction sees and writes the rows of pgworker.current_org() only';

-- An unqualified name in it must mean the same whoever calls it: it is asked by administrators.
alter function pgworker.job_status(uuid) set search_path = pg_catalog, pg_temp;

revoke all on function pgworker.schema_version() from public;
-- These two are PUBLIC's: policies and defaults call the first as whoever uses the table, and neither has rights to lend.
grant execute on function pgworker.current_org(), pgworker.protect_table(regclass, name) to public;
