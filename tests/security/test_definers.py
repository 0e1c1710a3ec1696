"""Functions that act with the owner's rights, under a caller who has planted everything that could be taken for what
they use: of each function and operator that PostgreSQL has by the names in their source, one of his own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from tests.sql.actors import ask
from tests.sql.test_roles import CALLS, DEFINERS, DEFINERS_CALLED, OURS, calls, own_id

FIXED = "search_path=pg_catalog, pg_temp"

Login = Callable[..., str]


def sources(connection: Connection[Any]) -> str:
    return "\n".join(ask(connection, f"select prosrc from pg_proc where pronamespace = {OURS}"))


def test_every_function_with_the_owners_rights_is_closed(roles_dsn: str) -> None:
    """From the catalog, whatever will be added: fixed path with pg_temp at its end, and not for the public."""
    with psycopg.connect(roles_dsn) as connection:
        found = ask(
            connection,
            f"""select proname, proconfig, has_function_privilege('public', oid, 'execute'), proowner::regrole::text,
                       provolatile::text, proleakproof {DEFINERS}""",
        )
    assert len(found) >= 8
    for name, config, is_public, owner, _, leaks in found:
        assert FIXED in (config or []), name
        assert (is_public, owner, leaks) == (False, "pgworker_owner", False), name


def test_triggers_fire_functions_whose_path_is_fixed_too(roles_dsn: str) -> None:
    """A trigger runs in the session of whoever writes the row."""
    with psycopg.connect(roles_dsn) as connection:
        lax = ask(
            connection,
            f"""select distinct proname from pg_proc join pg_trigger on tgfoid = pg_proc.oid
                where pronamespace = {OURS} and not {FIXED!r} = any (coalesce(proconfig, '{{}}'))""",
        )
        names = ask(connection, f"select proname from pg_proc where pronamespace = {OURS} and prorettype = 2279")
    assert names
    assert lax == []


@pytest.fixture
def attacker(roles_dsn: str, login: Login) -> Iterator[Connection[Any]]:
    """A worker, admin and enqueuer in one, with a schema of his own, and public to write to, before everything."""
    theirs = login(*CALLS)
    with psycopg.connect(roles_dsn, autocommit=True) as connection:
        connection.execute(f"create schema evil authorization {conninfo_to_dict(theirs)['user']}".encode())
        connection.execute("grant create on schema public to public")
        words = set(re.findall(r"\w+", sources(connection)))
    with psycopg.connect(theirs, autocommit=True) as connection:
        connection.execute("grant usage on schema evil to public")
        plant(connection, words)
        connection.execute("set search_path = pg_temp, evil, public, pg_catalog")
        yield connection


PLANT_FUNCTIONS = """
do $do$
declare
    one record; arguments text; result text;
begin
    for one in
        select proname, array(select format_type(type, null) from unnest(proargtypes) as type) as types, proretset,
               format_type(prorettype, null) as result
        from pg_proc where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' and proname = any (%(words)s)
              and prorettype <> all ('{internal,trigger,event_trigger,cstring}'::regtype[])
              and not proargtypes::oid[] && '{internal,cstring}'::regtype[]::oid[]
    loop
        begin
            result := case when one.result like any ('{any%%}') then 'text' else one.result end;
            arguments := regexp_replace(array_to_string(one.types, ', '), 'any\\w*', 'text', 'g');
            if arguments is distinct from array_to_string(one.types, ', ') then
                arguments := replace(arguments, 'text', 'uuid');
            end if;
            execute format('create function evil.%%I(%%s) returns %%s%%s language plpgsql as $f$ begin
                raise exception ''trapped by %%s as %%%%'', current_user; end $f$',
                one.proname, arguments, case when one.proretset then 'setof ' else '' end, result, one.proname);
        exception when others then null;
        end;
    end loop;
end $do$
"""

PLANT_OPERATORS = """
do $do$
declare
    one record;
begin
    for one in
        select oprname, format_type(oprleft, null) as left_type, format_type(oprright, null) as right_type,
               format_type(oprresult, null) as result, row_number() over () as number
        from pg_operator where oprnamespace = 'pg_catalog'::regnamespace and oprkind = 'b'
              and oprleft = any ('{text,uuid,integer,bigint,timestamptz,date,interval,oid,name,jsonb}'::regtype[])
    loop
        begin
            execute format('create function evil.trap_%%s(%%s, %%s) returns %%s language plpgsql as $f$ begin
                raise exception ''trapped by operator %%s as %%%%'', current_user; end $f$',
                one.number, one.left_type, one.right_type, one.result, replace(one.oprname, '%%', '%%%%'));
            execute format('create operator evil.%%s (function = evil.trap_%%s, leftarg = %%s, rightarg = %%s)',
                one.oprname, one.number, one.left_type, one.right_type);
        exception when others then null;
        end;
    end loop;
end $do$
"""


def plant(connection: Connection[Any], words: set[str]) -> None:
    named = "array[" + ",".join(f"'{word}'" for word in sorted(words)) + "]"
    connection.execute((PLANT_FUNCTIONS % {"words": named}).encode())
    connection.execute((PLANT_OPERATORS % {}).encode())
    tables = ask(
        connection, "select relname from pg_class where relnamespace = 'pgworker'::regnamespace and relkind = 'r'"
    )
    catalogs = (
        "pg_class",
        "pg_proc",
        "pg_policy",
        "pg_inherits",
        "pg_locks",
        "pg_namespace",
        "pg_roles",
        "pg_attribute",
    )
    for name in (*tables, *catalogs):
        for schema in ("evil", "pg_temp"):
            connection.execute(f"create table {schema}.{name} (id uuid, relname text, version integer)".encode())
    for name in ("text", "uuid", "timestamptz", "date", "interval", "int4", "int8", "regclass", "jsonb"):
        connection.execute(f"create domain pg_temp.{name} as text check (false)".encode())
    count = "select count(*) from pg_catalog.pg_proc where pronamespace = 'evil'::regnamespace"
    assert ask(connection, count)[0] > 300, "there is something to step into"


def test_nothing_that_was_planted_is_run_by_any_function_that_can_be_called(attacker: Connection[Any]) -> None:
    """By `job_status` and its like neither: they are for operators, whose session may have been prepared by others."""
    for statement in DEFINERS_CALLED:
        if "job_status" not in statement:
            attacker.execute(statement.encode(), {"id": own_id()})
    attacker.execute("set search_path = pg_catalog, pg_temp")
    every = [call for name, call in calls(attacker) if name not in CALLER_S_OWN]
    assert len(every) > 10
    attacker.execute("set search_path = pg_temp, evil, public, pg_catalog")
    told = {call: error_of(attacker, TYPES.sub(QUALIFIED, call)) for call in every}
    assert {call: error for call, error in told.items() if "trapped" in error or "_check" in error} == {}


CALLER_S_OWN = {"job_status"}
"""Acts with the rights of who calls it, on what he may read."""

TYPES = re.compile(r"null::(text|uuid|jsonb|date|regclass|name)\b")
QUALIFIED = r"null::pg_catalog.\1"


def error_of(connection: Connection[Any], statement: str) -> str:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
    except psycopg.Error as error:
        return str(error)
    return ""


def test_what_was_planted_does_catch_whoever_looks_there(attacker: Connection[Any]) -> None:
    attacker.execute("set search_path = evil, pg_catalog, pg_temp")
    for statement in ("select clock_timestamp()", "select 'a'::text = 'b'::text", "select hashtext('a'::text)"):
        with pytest.raises(psycopg.Error, match="trapped by"):
            attacker.execute(statement.encode())


# -- what is not to be had by asking sideways


SIDEWAYS = {
    "statistics": "select from pg_stats where schemaname = 'pgworker' and tablename <> ''",
    "extended statistics": "select from pg_stats_ext where schemaname = 'pgworker'",
    "statements of others": """select from pg_stat_activity where usename <> current_user and query <> ''
                               and query !~ 'insufficient privilege'""",
    "large objects": "select from pg_largeobject_metadata",
}


@pytest.mark.parametrize("way", SIDEWAYS)
def test_who_enqueues_learns_nothing_of_others_payloads(roles_dsn: str, login: Login, way: str) -> None:
    with (
        psycopg.connect(roles_dsn, autocommit=True) as owner,
        psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as enqueuer,
    ):
        owner.execute("""select pgworker.enqueue('t', '{"secret": "canary"}')""")
        owner.execute("analyze pgworker.jobs")
        assert ask(enqueuer, SIDEWAYS[way]) == []


def test_an_error_of_the_tables_shows_only_the_callers_own_row(roles_dsn: str, login: Login) -> None:
    with (
        psycopg.connect(roles_dsn, autocommit=True) as owner,
        psycopg.connect(login("pgworker_enqueuer"), autocommit=True) as enqueuer,
    ):
        taken = own_id()
        owner.execute("""select pgworker.enqueue('t', '{"secret": "canary"}', org_id => 'acme', id => %s)""", [taken])
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            enqueuer.execute("select pgworker.enqueue('t', id => %s)", [taken])
        told = f"{caught.value} {caught.value.diag.message_detail} {caught.value.diag.context}"
        assert not [word for word in ("canary", "acme") if word in told]
