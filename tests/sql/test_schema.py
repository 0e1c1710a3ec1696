"""The migrated schema is the one that `pgworker/sql/schema.sql` shows, on every PostgreSQL alike.

After a migration was written, write the file anew, read what changed, and commit both:

    PGWORKER_WRITE_SCHEMA=1 .venv/bin/python -m pytest -n0 tests/sql/test_schema.py
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

import pgworker.sql
from tests.sql.actors import Connect, ask

SCHEMA = Path(next(iter(pgworker.sql.__path__))) / "schema.sql"

HEAD = """\
-- The schema that all migrations together make, read from the catalogs of a migrated database; to read, not to run.
-- Partitions of days are left out. tests/sql/test_schema.py compares it, and says how to write it anew.
"""

OURS = "'pgworker'::regnamespace and relname !~ '_[0-9]{8}(_|$)'"

# Each a query of one text column. In pg_constraint the NOT NULLs of PostgreSQL 18 are left out: older ones don't have
# them there, and they show at the columns.
PARTS = {
    "types": """
        select format('create type pgworker.%I as enum (%s);', typname,
                      string_agg(quote_literal(enumlabel), ', ' order by enumsortorder))
        from pg_type join pg_enum on enumtypid = pg_type.oid
        where typnamespace = 'pgworker'::regnamespace group by typname order by typname collate "C"
    """,
    "domains": """
        select format('create domain pgworker.%I as %s %s;', typname, format_type(typbasetype, typtypmod),
                      string_agg(pg_get_constraintdef(pg_constraint.oid), ' ' order by conname collate "C"))
        from pg_type left join pg_constraint on contypid = pg_type.oid
        where typnamespace = 'pgworker'::regnamespace and typtype = 'd'
        group by typname, typbasetype, typtypmod order by typname collate "C"
    """,
    "tables": f"""
        select format(E'create table pgworker.%I (\\n    %s\\n)%s%s%s;', relname,
                      concat_ws(E',\\n    ', attributes.list, constraints.list),
                      E'\\npartition by ' || pg_get_partkeydef(pg_class.oid),
                      E'\\npartition of ' || inhparent::regclass || ' ' || pg_get_expr(relpartbound, pg_class.oid),
                      E'\\nwith (' || array_to_string(reloptions, ', ') || ')')
        from pg_class
        left join pg_inherits on inhrelid = pg_class.oid
        cross join lateral (
            select string_agg(concat_ws(' ', quote_ident(attname), format_type(atttypid, atttypmod),
                                        case when attnotnull then 'not null' end,
                                        'default ' || pg_get_expr(adbin, adrelid)),
                              E',\\n    ' order by attnum) as list
            from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = pg_class.oid and attnum > 0 and not attisdropped) as attributes
        cross join lateral (
            select string_agg(format('constraint %I %s', conname, pg_get_constraintdef(pg_constraint.oid)),
                              E',\\n    ' order by conname collate "C") as list
            from pg_constraint where conrelid = pg_class.oid and contype <> 'n') as constraints
        where relnamespace = {OURS} and relkind in ('r', 'p') order by relname collate "C"
    """,
    "indexes": f"""
        select pg_get_indexdef(pg_class.oid) || ';'
        from pg_class join pg_index on indexrelid = pg_class.oid
        where relnamespace = {OURS} and not exists (select from pg_constraint where conindid = pg_class.oid)
        order by relname collate "C"
    """,
    "views": f"""
        select format(E'create view pgworker.%I as\\n%s', relname, pg_get_viewdef(oid, true))
        from pg_class where relnamespace = {OURS} and relkind in ('v', 'm') order by relname collate "C"
    """,
    "functions": """
        select trim(trailing E'\\n' from pg_get_functiondef(oid)) || ';' from pg_proc
        where pronamespace = 'pgworker'::regnamespace order by oid::regprocedure::text collate "C"
    """,
    "triggers and policies": f"""
        select pg_get_triggerdef(pg_trigger.oid) || ';' from pg_trigger join pg_class on pg_class.oid = tgrelid
        where relnamespace = {OURS} and not tgisinternal
        union all
        select format('policy %I on %s: %s %s', polname, polrelid::regclass, pg_get_expr(polqual, polrelid),
                      pg_get_expr(polwithcheck, polrelid))
        from pg_policy join pg_class on pg_class.oid = polrelid where relnamespace = {OURS}
        order by 1
    """,
    "comments": f"""
        select format('comment on %s is %L;', what, description)
        from (select case when objsubid = 0 then 'table ' || objoid::regclass
                          else format('column %s.%I', objoid::regclass, attname) end as what, description
              from pg_description join pg_class on pg_class.oid = objoid and classoid = 'pg_class'::regclass
              left join pg_attribute on attrelid = objoid and attnum = objsubid and objsubid > 0
              where relnamespace = {OURS}
              union all
              select 'function ' || objoid::regprocedure, description
              from pg_description join pg_proc on pg_proc.oid = objoid and classoid = 'pg_proc'::regclass
              where pronamespace = 'pgworker'::regnamespace
              union all
              select 'type ' || objoid::regtype, description
              from pg_description join pg_type on pg_type.oid = objoid and classoid = 'pg_type'::regclass
              where typnamespace = 'pgworker'::regnamespace) as described
        order by what collate "C"
    """,
    "rights of others than the owner": f"""
        select format('grant %s on %s to %s;', lower(string_agg(privilege_type, ', ' order by privilege_type)), what,
                      case grantee when 0 then 'public' else grantee::regrole::text end)
        from (select 'schema pgworker' as what, nspowner as owner, (aclexplode(nspacl)).*
              from pg_namespace where nspname = 'pgworker'
              union all
              select 'table ' || oid::regclass, relowner, (aclexplode(relacl)).*
              from pg_class where relnamespace = {OURS} and relkind in ('r', 'p', 'v')
              union all
              select 'function ' || oid::regprocedure, proowner,
                     (aclexplode(coalesce(proacl, acldefault('f', proowner)))).*
              from pg_proc where pronamespace = 'pgworker'::regnamespace) as granted
        where grantee <> owner group by what, grantee order by what collate "C"
    """,
}


def dump(connection: Connection[Any]) -> str:
    """The schema as text, the same on PostgreSQL 14 to 18."""
    connection.execute("set search_path = pg_catalog, pg_temp")
    parts = {name: ask(connection, query.replace("%", "%%")) for name, query in PARTS.items()}
    return HEAD + "".join(f"\n\n-- {name}\n\n" + "\n\n".join(rows) + "\n" for name, rows in parts.items() if rows)


def test_the_migrated_schema_is_the_committed_one(connect: Connect) -> None:
    found = dump(connect())
    if os.environ.get("PGWORKER_WRITE_SCHEMA"):
        SCHEMA.write_text(found)
    if found != (committed := SCHEMA.read_text()):
        lines = difflib.unified_diff(committed.splitlines(), found.splitlines(), str(SCHEMA), "migrated", lineterm="")
        pytest.fail("\n".join([*lines, "If this is meant: PGWORKER_WRITE_SCHEMA=1 writes it (see this file's head)."]))


@pytest.mark.parametrize(
    "change",
    [
        "alter table pgworker.queues add column note text",
        "alter table pgworker.queues alter column paused set default true",
        "alter domain pgworker.task_name drop constraint task_name_check",
        "alter table pgworker.job_queue reset (vacuum_truncate)",
        "drop index pgworker.job_queue_claim",
        "alter type pgworker.execution_outcome add value 'strange'",
        "alter function pgworker.create_partition(date) reset lock_timeout",
        "grant select on pgworker.jobs to public",
        "grant execute on function pgworker.somebody_sleeps(text) to public",
        "comment on column pgworker.job_queue.failures is 'something else'",
        "drop view pgworker.executions",
    ],
)
def test_a_change_of_anything_shows_in_the_dump(connect: Connect, change: str) -> None:
    connection = connect()
    before = dump(connection)
    connection.execute(change.encode())
    assert dump(connection) != before


def test_the_partitions_of_a_day_do_not(connect: Connect) -> None:
    connection = connect()
    before = dump(connection)
    connection.execute("select pgworker.create_partition('2020-01-01')")
    assert dump(connection) == before
